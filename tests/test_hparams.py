"""A wrong `hparams.toml` stops at start with the full path of the key that is wrong."""

from pathlib import Path

import pytest

from crusades import hparams, validator
from crusades.errors import ConfigError
from crusades.hparams_check import STATISTICS, must_judge

ROOT = Path(__file__).parent.parent
GOOD = (ROOT / "hparams.toml").read_text()


@pytest.fixture
def file(tmp_path):
    """Call it with (old, new) pieces of the project's own hparams.toml: a path with the text so changed."""

    def write(*changes, text=GOOD):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "hparams.toml"
        path.write_text(text)
        return path

    return write


def limits(lines):
    """A change: this as the whole of tiny's limits."""
    block = GOOD.split("[profiles.tiny.limits]\n")[1].split("\n\n")[0]
    return (block, lines)


WRONG = {
    "unknown section": (("[scoring]", "[scorning]"), "scorning: there is no such key"),
    "unknown key": (("margin = 0.005", "margn = 0.005"), "scoring.margn: there is no such key"),
    "unknown key in a profile": (("exam_pool = 12", "exam_pol = 12"), "profiles.tiny.exam_pol: there is no such key"),
    "unknown key in a section of a profile": (("warmup = 120.0", "warm = 120.0"), "profiles.tiny.deadlines.warm: there is no such key"),
    "missing key": (("sequence_length = 128\n", ""), "profiles.tiny.sequence_length: is missing"),
    "wrong type": (("margin = 0.005", 'margin = "small"'), "scoring.margin: Expected `float`, got `str`"),
    "wrong type in a profile": (("batch_size = 8", 'batch_size = "8"'), "profiles.tiny.batch_size: Expected `int`, got `str`"),
    "wrong type of a whole profile": (("[profiles.tiny]\n", "[profiles]\nnano = 3\n[profiles.tiny]\n"), "profiles.nano: Expected `object`, got `int`"),
    "wrong type in a list": (("[scoring]", "[chain]\nendpoints = [7]\n[scoring]"), "chain.endpoints[0]: Expected `str`, got `int`"),
    "out of range": (("margin = 0.005", "margin = 1.5"), "scoring.margin: Expected `float` <= 1.0"),
    "out of range in a profile": (("steps = 5", "steps = 0"), "profiles.tiny.steps: Expected `int` >= 1"),
    "not one of": (('dtype = "float32"', 'dtype = "float8"'), "profiles.tiny.model.dtype: Invalid enum value 'float8'"),
    "infinite": (("margin = 0.005", "margin = inf"), "scoring.margin: inf is not a finite number"),
    "two sources": (('config = "qwen2-tiny"', 'config = "qwen2-tiny"\nhub = "a/b"'), "profiles.tiny.model needs exactly one of"),
    "a scale of what is not drawn": (('config = "qwen2-tiny"', 'path = "x"\nvocabulary_scale = 2.0'), "profiles.tiny.model.vocabulary_scale is 2.0, and the weights are not drawn"),
    "a limit for tokens that nobody draws": (("anchored_runs = 4", "anchored_runs = 4\ntokens = 0"), "profiles.tiny.audit.tokens is 0, and limits.token_attribution would judge nothing"),
    "a peak below nothing": (("exam_pool = 12", "peak_tflops = -1.0"), "profiles.tiny.peak_tflops: Expected `float` >= 0.0"),
    "a decay that divides by zero": (("exam_pool = 12", "beta1 = 1.0"), "profiles.tiny.beta1: Expected `float` < 1.0"),
    "the other decay": (("exam_pool = 12", "beta2 = 1.0"), "profiles.tiny.beta2: Expected `float` < 1.0"),
    "a statistic that nobody measures": (limits("gradient_eror = 0.1"), "profiles.tiny.limits.gradient_eror: there is no such statistic; did you mean gradient_error?"),
    "a list of no limits": (limits("outliers = []"), "profiles.tiny.limits.outliers: 0 limits; one for all steps or 5, one per step, are needed"),
    "a limit too many": (limits("outliers = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]"), "profiles.tiny.limits.outliers: 6 limits"),
    "a limit that is no number": (limits("outliers = nan"), "profiles.tiny.limits.outliers: nan is not a finite number"),
    "a limit that is no number, in a list": (limits("outliers = [0.1, 0.1, inf, 0.1, 0.1]"), "profiles.tiny.limits.outliers[2]: inf is not a finite number"),
    "a limit below nothing": (limits("outliers = -0.1"), "profiles.tiny.limits.outliers: -0.1 is below 0"),
    "a limit in words": (limits('outliers = ["x"]'), "profiles.tiny.limits.outliers: Expected `float`, got `str`"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_key_is_named_with_its_full_path(file, change, words):
    path = file(change)
    with pytest.raises(ConfigError) as caught:
        hparams.load(path)
    assert str(caught.value).startswith(f"{path}: {words}")


@pytest.mark.parametrize("case", ["unknown key", "wrong type in a profile", "out of range", "a statistic that nobody measures"])
def test_the_validator_stops_with_exit_code_2_and_the_key(file, capfd, case):
    change, words = WRONG[case]
    assert validator.main(["--network", "dev", "--hparams", str(file(change))]) == 2
    said = capfd.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_the_validator_refuses_a_profile_that_judges_nothing(file, capfd):
    assert validator.main(["--network", "dev", "--hparams", str(file(limits("")))]) == 2
    said = capfd.readouterr().err
    assert "profiles.tiny.limits is empty" in said
    assert "crusades calibrate --profile tiny --write" in said


def test_the_validator_refuses_anchored_steps_that_nothing_judges(file, capfd):
    assert validator.main(["--network", "dev", "--hparams", str(file(limits("outliers = 1")))]) == 2
    assert "profiles.tiny.limits has none for anchored steps" in capfd.readouterr().err


@pytest.mark.parametrize("number", [3, 6])
def test_every_late_step_is_anchored_in_a_scored_run_or_none_is(file, number):
    with pytest.raises(ConfigError, match=rf"profiles\.tiny\.audit\.anchored_runs is {number}: .*choose 0, or 4 to 5"):
        hparams.load(file(("anchored_runs = 4", f"anchored_runs = {number}")))


def test_a_step_that_neither_the_reference_takes_nor_an_anchor_meets_is_refused(file):
    with pytest.raises(ConfigError, match=r"profiles\.tiny\.audit\.reference_steps is 1 and 3 late steps are anchored: 1 of 5 steps would not be judged"):
        hparams.load(file(("anchored_runs = 4", "anchored_runs = 4\nanchor_steps = 3\nreference_steps = 1")))
    loaded = hparams.load(file(("anchored_runs = 4", "anchored_runs = 4\nreference_steps = 1"), limits("")))
    assert loaded.profile("tiny").audit.reference_steps == 1


@pytest.mark.parametrize("lines", ["final_loss = 0.1", "update_error = [1e9, 1e9, 1e9, 1e9, 0.1]", "silent = 0.1", "silent = [0.1, 0.1, 1e9, 1e9, 1e9]"])
def test_a_limit_for_a_step_that_the_reference_does_not_take_is_refused(file, lines):
    short = ("anchored_runs = 4", "anchored_runs = 4\nreference_steps = 1")
    with pytest.raises(ConfigError, match=rf"profiles\.tiny\.limits\.{lines.split()[0]} judges steps that the reference does not take .*recalibrate"):
        hparams.load(file(short, limits(lines)))
    kept = "silent = [0.1, 1e9, 1e9, 1e9, 1e9]\noptimizer_weights = 1.0\ntotal_tokens = 0.0\nanchor_silent = 0.1"
    assert len(hparams.load(file(short, limits(kept))).profile("tiny").limits) == 4


def test_settings_that_came_later_leave_the_name_of_older_rules_as_it_was(file):
    """A submission is judged by the rules of its block, which are found by that name."""
    plain = hparams.load(ROOT / "hparams.toml")
    assert plain.rules_version("tiny") == hparams.load(file(("anchored_runs = 4", "anchored_runs = 4\nfine_cells = 32\nreference_steps = 1000000"))).rules_version("tiny")
    assert plain.rules_version("tiny") != hparams.load(file(("anchored_runs = 4", "anchored_runs = 4\nfine_cells = 64"))).rules_version("tiny")
    assert plain.rules_version("tiny") == hparams.load(file(("exam_pool = 12", "exam_pool = 12\nuneven = 0.0"))).rules_version("tiny")
    assert plain.rules_version("tiny") != hparams.load(file(("exam_pool = 12", "exam_pool = 12\nuneven = 0.1"))).rules_version("tiny")
    assert plain.rules_version("tiny") == hparams.load(file(('config = "qwen2-tiny"', 'config = "qwen2-tiny"\nvocabulary_scale = 1.0'))).rules_version("tiny")
    assert plain.rules_version("tiny") != hparams.load(file(('config = "qwen2-tiny"', 'config = "qwen2-tiny"\nvocabulary_scale = 2.0'))).rules_version("tiny")
    assert plain.rules_version("tiny") == hparams.load(file(("anchored_runs = 4", "anchored_runs = 4\ntokens = 64"))).rules_version("tiny")
    assert plain.rules_version("smol") == "1+999be2f0"


@pytest.mark.parametrize(("network", "wanted"), [("dev", ("tiny",)), ("finney", ("qwen2.5-3b",)), ("ws://127.0.0.1:9944", ("qwen2.5-3b", "tiny"))])
def test_only_profiles_that_may_judge_need_limits(network, wanted):
    assert validator.profiles_of(network, hparams.load(ROOT / "hparams.toml")) == wanted


def test_what_ships_can_judge():
    shipped = hparams.load(ROOT / "hparams.toml")
    must_judge(shipped, shipped.competition.profile, shipped.competition.dev_profile)


def test_a_profile_without_limits_loads_for_bench_and_calibrate(file):
    assert hparams.load(file(limits(""))).profile("tiny").limits == {}


def test_limits_may_be_one_for_all_steps_or_one_per_step(file):
    loaded = hparams.load(file(limits("outliers = 1\nsilent = [0.5]\nunmoved = [1e9, 0, 0.0, 1.0, 2]")))
    assert loaded.profile("tiny").limits == {"outliers": 1.0, "silent": (0.5,), "unmoved": (1e9, 0.0, 0.0, 1.0, 2.0)}


def test_the_names_are_those_that_the_referee_measures():
    from crusades.bench.referee.statistic import WORDS, plain_name

    assert {plain_name(name) for name in STATISTICS} == set(WORDS)
    assert set(hparams.load(ROOT / "hparams.toml").profile("tiny").limits) == STATISTICS, "a calibration with anchored steps covers all of them"


def test_what_is_no_toml_says_so(file):
    with pytest.raises(ConfigError, match="is not valid TOML"):
        hparams.load(file(text="[scoring\n"))


ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


@pytest.mark.parametrize("address", ["", "5Treasury", ALICE[:-1], ALICE[:-1] + "Z", "1" + ALICE, "5" * 64, "ä" * 48, "HNZata7iMYWmk5RvZRTiAsSDhV8366zq2YGb3tLH5Upf74F"])
def test_a_fee_that_nobody_can_pay_is_refused_at_the_start(file, address):
    with pytest.raises(ConfigError, match=r"chain\.fee_address"):
        hparams.load(file(*asking(address)))


def test_a_fee_with_an_address_is_taken(file):
    assert hparams.load(file(*asking(ALICE))).chain.fee_address == ALICE


def asking(address):
    """Changes: a fee, paid to this address."""
    return (("[scoring]", f'[chain]\nfee_rao = 1\nfee_address = "{address}"\n\n[scoring]'),)
