import numpy as np

from models.arms import N_ARM, N_NEURAL, N_POLICY_CONTEXT, D, design
from models.learner import RewardLearner
from models.neural_linear import neural_columns
from models.posterior import merge


def vectors(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_row_does_not_depend_on_the_others():
    users, items = vectors(1, 5, 32), vectors(2, 5, 7, 32)
    together = neural_columns(users, items)
    for s in range(5):
        assert neural_columns(users[s : s + 1], items[s : s + 1])[0].tolist() == (
            together[s].tolist()
        )
    assert neural_columns(users[:1], items[:1, 3:4])[0, 0].tolist() == together[0, 3].tolist()


def test_an_item_without_a_vector_has_zeros_and_length_says_nothing():
    users, items = vectors(1, 1, 16), vectors(2, 1, 3, 16)
    items[0, 1] = 0
    columns = neural_columns(users, items)
    assert not columns[0, 1].any()
    assert (neural_columns(users * 7, items * 3) == columns).all()


def test_columns_are_about_one_in_size_and_the_same_for_ever():
    columns = neural_columns(vectors(1, 200, 64), vectors(2, 200, 20, 64))
    assert 0.8 < columns.std() < 1.25
    first = neural_columns(np.ones((1, 4), np.float32), np.ones((1, 1, 4), np.float32))
    # All coordinates alike: a column is its signs' sum over 2.
    assert first[0, 0].tolist() == [
        *(-1.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 2.0),
        *(0.0, 0.0, -1.0, -1.0, -1.0, 0.0, 0.0, -1.0),
    ]


def test_the_design_takes_them_behind_its_own_columns():
    context, arms = np.zeros(N_POLICY_CONTEXT), np.zeros((3, N_ARM + N_NEURAL))
    arms[:, N_ARM:] = np.arange(3 * N_NEURAL).reshape(3, N_NEURAL) / 10
    x = design(context, arms)
    assert x.shape == (3, D + N_NEURAL)
    assert (x[:, D:] == arms[:, N_ARM:]).all()
    assert (x[:, :D] == design(context, arms[:, :N_ARM])).all()


def test_a_linear_learner_finds_in_them_what_the_product_of_vectors_alone_hides():
    """Rewards follow a few coordinates of the product, which the plain sum mixes with all."""
    rng = np.random.default_rng(3)
    users, items = vectors(4, 4_000, 8), vectors(5, 4_000, 1, 8)
    unit = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (users[:, None], items)]
    product = (unit[0] * unit[1])[:, 0]
    rewards = 3 * (product[:, 0] - product[:, 1]) + rng.normal(size=4_000) * 0.1
    score = product.sum(axis=1)
    columns = neural_columns(users, items)[:, 0].astype(float)
    learner = RewardLearner([f"c{n}" for n in range(N_NEURAL)], spec_hash="test")
    for row, reward in zip(columns[:3_000], rewards[:3_000], strict=True):
        learner.learn(row, float(reward))
    told = columns[3_000:] @ merge([learner.statistics()], prior=1.0).mean
    assert np.corrcoef(told, rewards[3_000:])[0, 1] > 0.9
    assert abs(np.corrcoef(score[3_000:], rewards[3_000:])[0, 1]) < 0.1
