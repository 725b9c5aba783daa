"""Every token of a row sees exactly what stands above it in the tree."""

from hypothesis import given
from hypothesis import strategies as st
from seewhere.models.prompt_tree import Row, Segment, prompt_tree, walk

tokens = st.lists(st.integers(1, 3), min_size=1, max_size=30)


@given(st.lists(st.tuples(tokens, st.integers(1, 12)), min_size=1, max_size=8))
def test_rows_hold_every_prompt_and_option(questions: list[tuple[list[int], int]]) -> None:
    prompts = [prompt for prompt, _ in questions]
    options = [[(*(40 + int(c) for c in str(i)), 99) for i in range(count)] for _, count in questions]
    row = Row(prompt_tree(prompts, options))
    scored: dict[tuple[int, int], list[int]] = {}
    for column, token, question, option in row.reads:
        above = row.tokens[seen(row, column)].tolist()
        option_tokens = options[question][option]
        done = len(above) - len(prompts[question])
        assert above == [*prompts[question], *option_tokens[:done]]
        assert token == option_tokens[done]
        scored.setdefault((question, option), []).append(done)
    assert {key: sorted(value) for key, value in scored.items()} == {
        (q, o): list(range(len(option))) for q, row_ in enumerate(options) for o, option in enumerate(row_)
    }


def seen(row: Row, column: int) -> list[int]:
    """Columns that a token sees, in order of their positions, which count up from 0."""
    columns = range(column + 1) if row.visible is None else row.visible[column].nonzero()[0].tolist()
    ordered = sorted(columns, key=lambda c: row.depths[c])
    assert [int(row.depths[c]) for c in ordered] == list(range(len(ordered)))
    return ordered


def test_what_is_read_stands_at_the_end() -> None:
    tree = prompt_tree([[1] * 20 + [2], [1] * 20 + [3]], [[(5,), (6,)]] * 2)
    row = Row(tree)
    assert sorted({column for column, *_ in row.reads}) == [20, 21]
    assert len(row) == 22


def test_size_and_order() -> None:
    leaf = Segment((3, 4))
    top = Segment((1, 2), children=[Segment((5,), children=[leaf]), Segment((6,))])
    assert top.size == 6
    assert [(segment.tokens, parent) for segment, parent in walk([top])] == [
        ((1, 2), -1),
        ((5,), 0),
        ((3, 4), 1),
        ((6,), 0),
    ]
