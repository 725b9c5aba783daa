from types import SimpleNamespace

import pytest
from seewhere.models.phrases import groups_of_document, noun_groups


@pytest.mark.parametrize(
    ("text", "subject", "others"),
    [
        ("man in blue shirt on left", "man", ["blue shirt"]),
        ("guy left", "guy", []),
        ("the left guy", "left guy", []),
        ("the woman holding a red umbrella next to the building", "woman", ["red umbrella", "building"]),
        ("dog to the left of the red car", "dog", ["red car"]),
        ("Standing man, white hat", "man", ["white hat"]),
        ("piece of cake on the plate", "piece of cake", ["plate"]),
        ("a can of soda.", "can of soda", []),
        ("side of the bus", "bus", []),
        ("person who is wearing a green jacket", "person", ["green jacket"]),
        ("the third banana from the top", "third banana", []),
        ("kid's hand", "kid's hand", []),
        ("zebra", "zebra", []),
        ("second from left", "second from left", []),
        ("  left.  ", "left", []),
        ("bottom right corner", "bottom right corner", []),
        ("?!", "?!", []),
    ],
)
def test_rules(text, subject, others):
    groups = noun_groups(text)
    assert groups.subject.text == subject
    assert [group.text for group in groups.others] == others


@pytest.mark.parametrize("text", ["man in blue shirt on left", " the  old  dog , near a tree ", "left", "été, chat"])
def test_groups_are_spans_of_the_text(text):
    groups = noun_groups(text)
    for group in (groups.subject, *groups.others):
        assert text[group.start : group.end] == group.text
        assert group.text == group.text.strip() != ""


def test_empty_text_and_unknown_parser_are_refused():
    with pytest.raises(ValueError, match="empty"):
        noun_groups("  ")
    with pytest.raises(ValueError, match=r"unknown parser 'oracle'.*'rules' and 'spacy'"):
        noun_groups("dog", parser="oracle")


def parsed(words: list[tuple[str, str, str, int]], chunks: list[tuple[int, int, int]]):
    """A document as a dependency parser would give it: (word, tag, relation, head) and (first, end, root) chunks."""
    text = " ".join(word for word, *_ in words)
    tokens = []
    position = 0
    for word, tag, relation, _ in words:
        tokens.append(SimpleNamespace(text=word, idx=position, pos_=tag, dep_=relation))
        position += len(word) + 1
    for token, (*_, head) in zip(tokens, words, strict=True):
        token.head = tokens[head]

    class Chunk(list):
        root: SimpleNamespace

    noun_chunks = []
    for first, end, root in chunks:
        chunk = Chunk(tokens[first:end])
        chunk.root = tokens[root]
        noun_chunks.append(chunk)
    return SimpleNamespace(text=text, noun_chunks=noun_chunks)


def test_dependency_tree_names_the_subject():
    document = parsed(
        [
            ("near", "ADP", "prep", 5),
            ("the", "DET", "det", 2),
            ("tree", "NOUN", "pobj", 0),
            ("a", "DET", "det", 4),
            ("dog", "NOUN", "nsubj", 5),
            ("sits", "VERB", "ROOT", 5),
            ("left", "ADV", "advmod", 5),
        ],
        [(1, 3, 2), (3, 5, 4), (6, 7, 6)],
    )
    groups, subject = groups_of_document(document)
    assert [group.text for group in groups] == ["tree", "dog"]
    assert groups[subject].text == "dog"
    assert all(document.text[group.start : group.end] == group.text for group in groups)


def test_spacy_is_used_or_its_absence_explained():
    try:
        import spacy

        spacy.load("en_core_web_sm")
    except (ImportError, OSError):
        with pytest.raises(ImportError, match=r"pip install spacy.*'rules' needs neither"):
            noun_groups("a dog under the tree", parser="spacy")
    else:
        groups = noun_groups("a dog under the tree", parser="spacy")
        assert groups.subject.text == "dog"
        assert [group.text for group in groups.others] == ["tree"]
