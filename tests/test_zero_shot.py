from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from paperwalk.clip import CLIP, CLIPConfig
from paperwalk.tokenizers import ClipTokenizer
from paperwalk.zero_shot import (
    TEMPLATES,
    class_vectors,
    classify,
    encode_images,
    encode_texts,
    found_among,
    nearest,
    recall_at,
)

NAMES = ["red heart", "blue square", "cat", "old dog"]


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer.train([*NAMES, *TEMPLATES], 540)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return CLIP(
        CLIPConfig(
            image_size=8,
            patch_size=4,
            d_image=12,
            n_image_layers=1,
            n_image_heads=2,
            d_image_mlp=24,
            vocab_size=tokenizer.vocab_size,
            block_size=24,
            d_text=12,
            n_text_layers=1,
            n_text_heads=2,
            d_text_mlp=24,
            d_embed=6,
        )
    ).eval()


def test_probabilities_are_the_softmax_of_scaled_cosines(model, tokenizer):
    images = torch.randn(5, 3, 8, 8)
    probabilities = classify(model, tokenizer, images, NAMES, ["{}"])
    assert probabilities.shape == (5, 4)
    assert_close(probabilities.sum(1), torch.ones(5))
    logits = model(images, tokenizer(NAMES, 24))
    assert_close(probabilities, logits.softmax(1).detach())


def test_an_ensemble_is_the_mean_of_the_prompts_directions(model, tokenizer):
    prompts = [template.replace("{}", "cat") for template in TEMPLATES]
    rows = model.encode_text(tokenizer(prompts, 24)).detach()
    mean = sum(row / row.norm() for row in rows) / len(rows)
    vectors = class_vectors(model, tokenizer, NAMES)
    assert_close(vectors[2], mean / mean.norm())
    assert_close(vectors.norm(dim=1), torch.ones(4))


def test_the_order_of_classes_and_images_does_not_matter(model, tokenizer):
    images, order = torch.randn(5, 3, 8, 8), [2, 0, 3, 1]
    straight = classify(model, tokenizer, images, NAMES)
    turned = classify(model, tokenizer, images.flip(0), [NAMES[i] for i in order])
    assert_close(turned, straight.flip(0)[:, order])


def test_one_class_is_certain(model, tokenizer):
    assert_close(classify(model, tokenizer, torch.randn(2, 3, 8, 8), ["cat"]), torch.ones(2, 1))


def test_encoding_in_parts_is_encoding_at_once(model, tokenizer):
    images, texts = torch.randn(5, 3, 8, 8), [*NAMES, ""]
    assert_close(encode_images(model, images, 2), encode_images(model, images))
    assert_close(encode_texts(model, tokenizer, texts, 2), encode_texts(model, tokenizer, texts))
    assert not encode_images(model, images).requires_grad
    assert not encode_texts(model, tokenizer, texts).requires_grad


def test_a_brace_in_a_class_name_is_text(model, tokenizer):
    assert class_vectors(model, tokenizer, ["{cat}", "{}"]).shape == (2, 6)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], TEMPLATES, r"class names are \[\], expected at least one"),
        ("cat", TEMPLATES, "class names are 'cat', expected at least one, in a list"),
        (NAMES, [], r"templates are \[\], expected at least one"),
        (NAMES, "a {}", "templates are 'a {}', expected at least one, in a list"),
        (NAMES, ["a photo"], "template 'a photo' has 0 places {}, expected 1"),
        (NAMES, ["a {} and a {}"], "has 2 places {}, expected 1"),
    ],
)
def test_wrong_prompts_are_refused(model, tokenizer, names, templates, message):
    with pytest.raises(ValueError, match=message):
        classify(model, tokenizer, torch.randn(2, 3, 8, 8), names, templates)


def test_no_texts_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="no texts, expected at least one"):
        encode_texts(model, tokenizer, [])


# Retrieval


def test_nearest_are_the_largest_cosines_best_first():
    candidates = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    indices, cosines = nearest(torch.tensor([[5.0, 0.1]]), candidates, 2)
    assert indices.tolist() == [[0, 2]]
    assert_close(cosines, torch.tensor([[0.9998, 0.7211]]), atol=1e-4, rtol=0)


def test_recall_by_hand():
    queries = torch.eye(4)
    candidates = torch.tensor([[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0.5, 0.4]])
    # Ranks of the own candidate: 1, 1, 1, 1; the other way round: 1, 2, 1, 2.
    assert recall_at(1, queries, candidates) == 1.0
    assert recall_at(1, candidates, queries) == 0.5
    assert recall_at(2, candidates, queries) == 1.0


def test_recall_of_the_two_directions_differs():
    torch.manual_seed(0)
    a, b = torch.randn(50, 8), torch.randn(50, 8)
    ranks = (torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T).argsort(
        dim=1, descending=True
    )
    by_hand = sum(i in ranks[i, :5].tolist() for i in range(50)) / 50
    assert recall_at(5, a, b) == pytest.approx(by_hand)
    assert recall_at(5, a, b) != recall_at(5, b, a)


def test_recall_at_chance_and_of_a_constant():
    torch.manual_seed(0)
    values = [recall_at(5, torch.randn(200, 16), torch.randn(200, 16)) for _ in range(20)]
    assert sum(values) / 20 == pytest.approx(5 / 200, abs=0.008)
    assert recall_at(5, torch.ones(200, 4), torch.ones(200, 4)) == 0.0
    assert recall_at(200, torch.ones(200, 4), torch.ones(200, 4)) == 1.0


def test_the_right_candidates_may_be_named():
    scores = torch.tensor([[0.3, 0.9, 0.5], [0.8, 0.1, 0.2]])
    assert found_among(1, scores, torch.tensor([1, 2])).tolist() == [True, False]
    assert found_among(2, scores, torch.tensor([2, 2])).tolist() == [True, True]
    # A candidate that scores as much counts as before the right one.
    assert found_among(1, torch.tensor([[0.5, 0.5]]), torch.tensor([0])).tolist() == [False]
    with pytest.raises(ValueError, match="n=4, expected 1 to 3"):
        found_among(4, scores, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="2 queries with 3 candidates, expected pairs"):
        found_among(1, scores)


def test_wrong_retrieval_is_refused(unchecked):
    with pytest.raises(ValueError, match="3 queries with 4 candidates, expected pairs"):
        recall_at(1, torch.randn(3, 2), torch.randn(4, 2))
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"n={n}, expected 1 to 3"):
            recall_at(n, torch.randn(3, 2), torch.randn(3, 2))
        with pytest.raises(ValueError, match=f"n={n}, expected 1 to 3"):
            nearest(torch.randn(1, 2), torch.randn(3, 2), n)


# What the mutants of `make mutants` showed to be without a judge here.


def test_nothing_is_dropped_while_encoding(model, tokenizer):
    dropping = CLIP(replace(model.config, dropout=0.5))
    images = torch.randn(3, 3, 8, 8)
    for encode in (lambda: encode_images(dropping, images), lambda: encode_texts(dropping, tokenizer, NAMES)):
        dropping.train()
        first = encode()
        dropping.train()
        assert torch.equal(encode(), first)


def test_no_texts_are_refused_before_they_are_read(model):
    def read(texts, length):
        raise AssertionError("read")

    with pytest.raises(ValueError, match="no texts, expected at least one"):
        encode_texts(model, read, [])


def test_one_and_all_candidates_can_be_asked_for():
    queries, candidates = torch.randn(2, 3), torch.randn(4, 3)
    best, every = nearest(queries, candidates, 1)[0], nearest(queries, candidates, 4)[0]
    assert torch.equal(best, every[:, :1])
    assert every.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 2
    assert found_among(4, torch.randn(2, 4), torch.tensor([0, 3])).all()
