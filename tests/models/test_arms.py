import math

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import arms
from models.arm_features import arm_features
from models.arms import (
    ARM,
    CROSSES,
    DESIGN,
    N_ARM,
    N_CAMPAIGNS,
    N_POLICY_CONTEXT,
    POLICY_CONTEXT,
    design,
    loggable,
    policy_context,
    policy_spec_hash,
    with_fatigue,
)
from models.features import COLUMN, N_CONTEXT
from tests.models.test_arm_features import COLUMNS


def context(seed: int = 0, trigger_type: str = "intent") -> np.ndarray:
    raw = np.random.default_rng(seed).random(N_CONTEXT).astype(np.float32) * 9
    return policy_context(raw, trigger_type, 5.0, 1, 3)


def rows(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    columns = {name: rng.exponential(3.0, n) for name in COLUMNS}
    plain = arm_features(scores=rng.normal(size=n), sources=[2] * n, **columns)
    return with_fatigue(plain, rng.integers(0, 3, n), rng.exponential(3.0, n))


@given(st.integers(0, 10**6), st.integers(0, 20))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_logged_columns_give_the_same_input_bit_for_bit(seed: int, n_arms: int):
    shared, own = context(seed), rows(n_arms, seed)
    logged = orjson.dumps({"context": loggable(shared), "features": loggable(own)})
    read = orjson.loads(logged)
    features = read["features"] or np.empty((0, N_ARM))
    assert design(read["context"], features).tobytes() == design(shared, own).tobytes()


def test_float32_arms_written_by_orjson_as_they_are_give_the_same_input():
    shared, own = context(), rows(20)
    read = orjson.loads(orjson.dumps(own, option=orjson.OPT_SERIALIZE_NUMPY))
    assert design(shared, read).tobytes() == design(shared, own).tobytes()


def test_a_row_does_not_depend_on_the_rows_beside_it():
    shared, own = context(), rows(20)
    whole = design(shared, own)
    assert design(shared, own[7:8]).tobytes() == whole[7:8].tobytes()


def test_the_design_is_bias_context_arms_and_products():
    shared, own = context(), rows(3)
    x = design(shared, own)
    assert x.shape == (3, len(DESIGN))
    assert x[:, DESIGN.index("bias")].tolist() == [1.0, 1.0, 1.0]
    assert x[1, DESIGN.index("opens")] == shared[POLICY_CONTEXT.index("opens")]
    np.testing.assert_allclose(x[:, DESIGN.index("price")], own[:, ARM.index("price")], rtol=1e-6)
    product = x[:, DESIGN.index("score_z")] * x[:, DESIGN.index("hour_sin")]
    assert x[:, DESIGN.index("score_z x hour_sin")].tolist() == product.tolist()


def test_names_are_distinct_and_crosses_name_columns():
    assert len(set(DESIGN)) == len(DESIGN)
    assert {arm for arm, _ in CROSSES} <= set(ARM)
    assert {shared for _, shared in CROSSES} <= set(POLICY_CONTEXT)


@pytest.mark.parametrize(
    ("n_context", "n_arm"), [(N_POLICY_CONTEXT + 1, N_ARM), (N_POLICY_CONTEXT, N_ARM - 1)]
)
def test_columns_of_another_spec_are_refused(n_context: int, n_arm: int):
    with pytest.raises(ValueError, match="another policy spec"):
        design(np.zeros(n_context), np.zeros((2, n_arm)))


def test_the_context_takes_its_raw_columns_by_name():
    raw = [0.0] * N_CONTEXT
    raw[COLUMN["hour_cos"]] = -0.5
    raw[COLUMN["opens_decayed"]] = math.e**3 - 1
    out = dict(zip(POLICY_CONTEXT, policy_context(raw, "cart_left", 0.0, 0, 0), strict=True))
    assert {name: value for name, value in out.items() if value} == {
        "hour_cos": -0.5,
        "opens": 1.0,
        "trigger_cart_left": 1.0,
    }


def test_a_campaign_has_one_column_and_none_has_none():
    columns = [POLICY_CONTEXT.index(f"campaign_{number}") for number in range(N_CAMPAIGNS)]
    raw = [0.0] * N_CONTEXT
    rows = np.array(
        [policy_context(raw, "idle", 1.0, 0, 0, campaign_id=f"c{n}")[columns] for n in range(40)]
    )
    assert rows.sum(axis=1).tolist() == [1.0] * 40
    assert (rows.sum(axis=0) > 0).all()
    assert not policy_context(raw, "idle", 1.0, 0, 0)[columns].any()


def test_a_push_a_week_ago_is_as_good_as_none():
    pause = POLICY_CONTEXT.index("push_pause")
    week = policy_context([0.0] * N_CONTEXT, "idle", 168.0, 0, 0)
    never = policy_context([0.0] * N_CONTEXT, "idle", math.inf, 0, 0)
    assert week[pause] == never[pause] == 1.0


def test_fatigue_fills_its_two_columns_of_a_copy():
    plain = np.zeros((2, N_ARM), np.float32)
    filled = with_fatigue(plain, [0, 3], [math.inf, 1.0])
    assert filled[0].tolist() == [0.0] * N_ARM
    told = {name: v for name, v in zip(ARM, filled[1].round(4).tolist(), strict=True) if v}
    assert told == {"times_pushed": np.float32(1.3863), "push_recency": np.float32(0.3679)}
    assert not plain.any()


def test_an_empty_set_has_no_rows():
    empty = arm_features(scores=[], sources=[], **{name: [] for name in COLUMNS})
    assert design(context(), with_fatigue(empty, [], [])).shape == (0, len(DESIGN))


def test_the_hash_changes_with_a_scale(monkeypatch: pytest.MonkeyPatch):
    before = policy_spec_hash()
    monkeypatch.setattr(arms, "FRESH_DAYS", 8.0)
    assert policy_spec_hash() != before
