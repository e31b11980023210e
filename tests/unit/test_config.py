"""DynTSConfig: the paper's numbers, their consequences, and what is refused."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_dynts.config import MOST_TOKENS, PAPER_CONFIG, DynTSConfig, Windows, windows_for


@st.composite
def configs(draw) -> DynTSConfig:
    local = draw(st.integers(1, 60))
    budget = draw(st.integers(local + 1, 200))
    ratio = draw(st.sampled_from([0.01, 0.1, 0.3, 0.4, 0.5, 0.7, 0.99]))
    config = DynTSConfig(budget, local, ratio)
    least = draw(st.none() | st.integers(0, config.keep_len))
    return DynTSConfig(budget, local, ratio, least)


@pytest.mark.parametrize(
    ("budget", "local", "ratio", "keep", "retained", "period"),
    [
        (5000, 2000, 0.4, 1200, 3200, 1800),
        (3000, 1500, 0.4, 600, 2100, 900),
        (5000, 2000, 0.3, 900, 2900, 2100),
        (5000, 2500, 0.3, 750, 3250, 1750),
        (3000, 1000, 0.3, 600, 1600, 1400),
    ],
)
def test_the_papers_settings_give_the_papers_lengths(budget, local, ratio, keep, retained, period):
    config = DynTSConfig(budget, local, ratio)
    assert (config.keep_len, config.retained_len(0), config.period) == (keep, retained, period)


def test_the_default_is_the_papers():
    assert DynTSConfig(5000, 2000, 0.4) == PAPER_CONFIG


@pytest.mark.parametrize(
    ("budget", "ratio", "keep_len"),
    [(11, 0.3, 3), (101, 0.29, 29), (1001, 0.57, 570), (8, 0.1, 0), (2, 0.99, 0)],
)
def test_keep_len_is_exact_where_a_float_product_would_round(budget, ratio, keep_len):
    assert DynTSConfig(budget, 1, ratio).keep_len == keep_len


def test_a_short_question_shares_the_kept_tokens_with_thinking():
    config = DynTSConfig(5000, 2000, 0.4)
    assert config.selection_len(200) == 1000
    assert (config.retained_len(200), config.budget_for(200)) == (3200, 5000)


def test_a_question_longer_than_the_kept_tokens_raises_its_own_budget():
    config = DynTSConfig(5000, 2000, 0.4)
    assert config.selection_len(7000) == 300
    assert (config.retained_len(7000), config.budget_for(7000)) == (9300, 11100)


def test_the_selection_floor_is_a_quarter_of_the_kept_tokens_unless_given():
    assert DynTSConfig(5000, 2000, 0.4).selection_floor == 300
    assert DynTSConfig(5000, 2000, 0.4, 7).selection_floor == 7
    assert DynTSConfig(5000, 2000, 0.4, 0).selection_len(9999) == 0


@given(configs(), st.integers(0, 400))
def test_a_compaction_always_frees_one_period_and_never_the_question(config, question_len):
    budget, retained = config.budget_for(question_len), config.retained_len(question_len)
    assert budget - retained == config.period >= 1
    assert retained >= question_len + config.selection_floor + config.local_window
    assert budget >= config.budget


@given(configs())
def test_keep_len_is_the_floor_of_the_exact_product(config):
    exact = Fraction(str(config.keep_ratio)) * (config.budget - config.local_window)
    assert config.keep_len <= exact < config.keep_len + 1


@given(configs(), st.integers(0, 400))
def test_the_budget_stays_while_the_question_leaves_the_selection_its_floor(config, question_len):
    fits = config.keep_len - question_len >= config.selection_floor
    assert (config.budget_for(question_len) == config.budget) == fits


NOT_INTEGERS = ("300", 300.0, True, None)


@pytest.mark.parametrize("value", NOT_INTEGERS)
def test_a_budget_that_is_no_integer_is_refused(value):
    with pytest.raises(ValueError, match=f"^budget={value!r} must be an integer of at least 2$"):
        DynTSConfig(value, 1, 0.4)


@pytest.mark.parametrize("value", NOT_INTEGERS)
def test_a_local_window_that_is_no_integer_is_refused(value):
    message = f"^local_window={value!r} must be an integer of at least 1$"
    with pytest.raises(ValueError, match=message):
        DynTSConfig(100, value, 0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1, 0.4), "budget=1 must lie between 2 and 2147483648"),
        ((MOST_TOKENS + 1, 1, 0.4), "budget=2147483649 must lie between 2 and 2147483648"),
        ((100, 0, 0.4), "local_window=0 must lie between 1 and 2147483648"),
        ((100, -5, 0.4), "local_window=-5 must lie between 1 and 2147483648"),
        (
            (100, 100, 0.4),
            "budget=100 must be larger than local_window=100: raise the budget or shorten the "
            "local window",
        ),
        ((100, 10, 0), "keep_ratio=0 must lie between 0 and 1, both excluded"),
        ((100, 10, 1.0), "keep_ratio=1.0 must lie between 0 and 1, both excluded"),
        ((100, 10, -0.1), "keep_ratio=-0.1 must lie between 0 and 1, both excluded"),
        ((100, 10, float("nan")), "keep_ratio=nan must lie between 0 and 1, both excluded"),
        ((100, 10, "0.4"), "keep_ratio='0.4' must be a number between 0 and 1, both excluded"),
        ((100, 10, True), "keep_ratio=True must be a number between 0 and 1, both excluded"),
        ((100, 10, 0.4, -1), "min_selection=-1 must lie between 0 and 2147483648"),
        ((100, 10, 0.4, 1.5), "min_selection=1.5 must be an integer of at least 0"),
        (
            (100, 10, 0.4, 37),
            "min_selection=37 must not exceed keep_ratio * (budget - local_window) = 36: lower it "
            "or raise the budget",
        ),
    ],
)
def test_windows_that_cannot_be_served_are_refused_by_name_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DynTSConfig(*arguments)


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        PAPER_CONFIG.budget = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("context_len", "given", "wanted"),
    [
        (131072, Windows(), Windows(5000, 2000, 0.4)),
        (8192, Windows(), Windows(2048, 819, 0.4)),
        (8192, Windows(budget=1000, keep_ratio=0.7), Windows(1000, 400, 0.7)),
        (8192, Windows(local_window=100), Windows(2048, 100, 0.4)),
    ],
)
def test_windows_follow_from_a_context_where_nothing_recommends_any(context_len, given, wanted):
    assert windows_for(context_len, given) == wanted
