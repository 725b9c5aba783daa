"""The human baseline against answers whose score is known."""

import shutil

import pytest
from seewhere.boxes import CELLS
from seewhere.probing import rcm
from seewhere.probing.people import annotation_items, draw_items, human_baseline
from seewhere.show.annotate import CellAnswer, mark_of
from seewhere.world import export
from test_rcm_and_tasks import expressions


@pytest.fixture
def items():
    return rcm.build(expressions([8] * 9))


def knows(name, items):
    return [CellAnswer(name, item.item_id, (CELLS[item.cell],)) for item in items]


def test_people_who_know_are_right_and_agree(items):
    asked = draw_items(items, 20)
    found = human_baseline(asked, [*knows("anna", asked), *knows("ben", asked)])
    assert found.accuracy.value == found.cell_accuracy.value == 1 and found.accuracy.n == 40
    assert found.kappa == found.cell_kappa == 1 and found.shared == 20


def test_several_cells_and_refusals_are_left_out(items):
    asked = draw_items(items, 20)
    answers = knows("anna", asked)
    answers[0] = CellAnswer("anna", asked[0].item_id, (CELLS[(asked[0].cell + 1) % 9], "middle"))
    answers[1] = CellAnswer("anna", asked[1].item_id, (), wrong=True)
    found = human_baseline(asked, answers)
    assert found.accuracy.value == 1 and found.accuracy.n == 18 and found.kappa is None
    assert found.table.single.sum() == 18


def test_the_yes_follows_from_the_first_cell(items):
    yes, no = (next(item for item in items if item.label is label) for label in (True, False))
    answers = [CellAnswer("anna", yes.item_id, (CELLS[(yes.cell + 1) % 9],)),  # not where it is claimed: "no", wrong
               CellAnswer("anna", no.item_id, (CELLS[no.claimed],))]  # believes the claim: "yes", wrong  # fmt: skip
    found = human_baseline([yes, no], answers)
    assert found.accuracy.value == 0 == found.cell_accuracy.value
    third = next(c for c in range(9) if c not in (no.cell, no.claimed))
    lucky = human_baseline([no], [CellAnswer("anna", no.item_id, (CELLS[third],))])
    assert lucky.accuracy.value == 1 and lucky.cell_accuracy.value == 0


def test_a_passer_by_leaves_the_others_agreement_alone(items):
    asked = draw_items(items, 20)
    stray = CellAnswer("me", asked[0].item_id, (CELLS[(asked[0].cell + 1) % 9],))
    found = human_baseline(asked, [*knows("anna", asked), *knows("ben", asked), stray])
    assert found.kappa == found.cell_kappa == 1 and found.shared == 20
    assert found.accuracy.n == 41  # the answer itself counts


def test_agreement_by_hand(items):
    a, b = (item for item in draw_items(items, 2))
    at = CELLS.index
    answers = [CellAnswer("anna", a.item_id, ("top",)), CellAnswer("ben", a.item_id, ("top",)),
               CellAnswer("anna", b.item_id, ("top",)), CellAnswer("ben", b.item_id, ("bottom",))]  # fmt: skip
    # Agreement 1/2; by chance (3/4)^2 + (1/4)^2 = 5/8: kappa = -1/3.
    found = human_baseline([a, b], answers)
    assert at("top") == 1 and found.cell_kappa == pytest.approx(-1 / 3) and found.shared == 2


def test_items_are_drawn_half_true_and_no_expression_twice(items):
    asked = draw_items(items, 30, seed=3)
    assert len(asked) == 30 and sum(item.label for item in asked) == 15
    assert len({item.expression.expression_id for item in asked}) == 30
    assert asked == draw_items(items, 30, seed=3) != draw_items(items, 30, seed=4)


def test_expressions_whose_pictures_are_missing_are_not_put_to_people(tmp_path):
    root = tmp_path / "world"
    shutil.copytree(export.build(None, "smoke", progress=False), root)
    whole = annotation_items(root, "worldg")
    gone = whole[0].expression.image
    gone.path.unlink()
    left = annotation_items(root, "worldg")
    assert left and gone.image_id not in {item.expression.image.image_id for item in left}


def test_strange_answers_are_refused(items):
    with pytest.raises(ValueError, match="item 9999, which is not among"):
        human_baseline(items, [CellAnswer("anna", 9999, ("top",))])
    with pytest.raises(ValueError, match="expected names of cells"):
        human_baseline(items, [CellAnswer("anna", items[0].item_id, ("upstairs",))])


def test_answers_to_another_draw_are_not_held_against_this_one(items):
    """Numbers repeat from draw to draw: the same item 0, another picture and claim."""
    others = rcm.build(expressions([8] * 9), seed=1)
    mine = {item.item_id: item for item in items}
    other = next(item for item in others if mark_of(item) != mark_of(mine[item.item_id]))
    answer = CellAnswer("anna", other.item_id, (CELLS[other.cell],), asked=mark_of(other))
    assert human_baseline(others, [answer]).cell_accuracy.value == 1
    with pytest.raises(ValueError, match=r"anna answered another item .* file of their own"):
        human_baseline(items, [answer])
