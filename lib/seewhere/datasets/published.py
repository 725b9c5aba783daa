"""Published sizes, in sentences (expressions), to hold a copy on disk against.

Source: the data sets' papers and LLM-wrapper's table of splits. A copy with other numbers is a subset or another
version, and its scores do not compare with the published ones.
"""

from __future__ import annotations

SENTENCES: dict[str, dict[str, int]] = {
    "refcoco (unc)": {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095},
    "refcoco+ (unc)": {"train": 120_191, "val": 10_758, "testA": 5_726, "testB": 4_889},
    "refcocog (umd)": {"train": 80_512, "val": 4_896, "test": 9_602},
    "talk2car": {"train": 8_348, "val": 1_163, "test": 2_447},
    "hc-refloco": {"val": 13_360, "test": 31_378},
}
"""Data set (and partition) -> split -> number of sentences."""
