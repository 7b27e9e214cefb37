"""`crusades calibrate` on a small model: what is resumed, what is refused, and what is written."""

import dataclasses
import json
import shutil
import tomllib

import msgspec
import pytest

from crusades import cli, hparams
from crusades.bench.referee import calibrate as cal
from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.exam import prepare_exam
from crusades.bench.referee.lab import Lab, copies_for
from crusades.bench.referee.models import load_reference
from crusades.bench.referee.recipe import SIZES, Recipe, Variant
from crusades.bench.referee.variants import everything
from crusades.errors import ConfigError, UsageError

STEPS = 4
FEW = [
    Variant("eager", "honest", Recipe()),
    Variant("micro-batch 2", "honest", Recipe(micro=2)),
    Variant("nothing in the last step", "shortcut", Recipe(no_update=(STEPS - 1,), first=STEPS - 1), "steps", 0.1, "random"),
]


@pytest.fixture(scope="module")
def profile():
    found = hparams.load().profile("tiny")
    audit = msgspec.structs.replace(found.audit, coordinates=8_000, column_coordinates=2_000, cells=8, anchored_runs=0)
    return msgspec.structs.replace(found, steps=STEPS, sequence_length=16, batch_size=4, audit=audit)


@pytest.fixture
def calibrate(profile, tmp_path, monkeypatch):
    """Call it to calibrate with three variants; it returns (complete, names measured)."""
    monkeypatch.setattr(cal, "everything", lambda *_, **__: list(FEW))

    def run(**changes):
        told = []
        config = cal.CalibrateConfig(profile_name="tiny", profile=profile, device="cpu", out=tmp_path / "out", exams=1, on_progress=told.append)
        complete = cal.calibrate(dataclasses.replace(config, **changes))
        return complete, [line.split(": ")[0].split(maxsplit=1)[1] for line in told if line.startswith("  ")]

    return run


@pytest.fixture
def log(tmp_path):
    return tmp_path / "out" / "results.jsonl"


# ---------------------------------------------------------------------------------------------------- resuming


def test_everything_is_measured_once_and_written(calibrate, tmp_path):
    assert calibrate() == (True, [v.name for v in FEW])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"results.jsonl", "limits.json", "report.md"}


def test_what_was_measured_is_not_measured_again(calibrate, log):
    calibrate()
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]))
    assert calibrate() == (True, [FEW[-1].name])


def test_a_line_that_a_crash_cut_short_is_measured_again(calibrate, log):
    calibrate()
    log.write_bytes(log.read_bytes()[:-20])
    assert calibrate() == (True, [FEW[-1].name])
    assert len(cal.read_results(log)) == len(FEW)


def test_when_the_time_is_up_no_further_exam_is_prepared(calibrate, monkeypatch):
    prepared = []
    monkeypatch.setattr(cal, "prepare_exam", lambda *a: prepared.append(1) or prepare_exam(*a))
    assert calibrate(seconds=1e-9, only=("eager",), exams=3) == (False, ["eager"])
    assert prepared == [1]


def test_calls_that_are_too_short_for_anything_come_to_an_end_all_the_same(calibrate):
    assert [calibrate(seconds=1e-9) for _ in range(len(FEW))] == [(False, ["eager"]), (False, ["micro-batch 2"]), (True, ["nothing in the last step"])]
    assert calibrate(seconds=1e-9) == (True, [])


def test_the_number_of_shortcuts_of_a_dimension_can_be_bounded(calibrate, monkeypatch):
    more = [*FEW, Variant("larger", "shortcut", Recipe(no_update=(0,)), "steps", 0.2, "random"), Variant("other", "shortcut", Recipe(stale=(1,)), "else", 0.1)]
    monkeypatch.setattr(cal, "everything", lambda *_, **__: list(more))
    assert calibrate(each=1) == (True, ["eager", "micro-batch 2", "nothing in the last step", "other"])


def test_a_second_exam_measures_honest_work_and_the_smallest_shortcut_of_each_kind_and_a_third_honest_work_alone(calibrate, monkeypatch):
    larger = Variant("larger", "shortcut", Recipe(no_update=(0,)), FEW[2].dimension, FEW[2].work + 0.1, FEW[2].choice)
    other = Variant("unseen", "shortcut", Recipe(stale=(1,)), FEW[2].dimension, FEW[2].work + 0.2, "least visible")
    monkeypatch.setattr(cal, "everything", lambda *_, **__: [*FEW, larger, other])
    calibrate()
    assert calibrate(exams=2) == (True, ["eager", "micro-batch 2", "nothing in the last step", "unseen"])
    assert calibrate(exams=3) == (True, ["eager", "micro-batch 2"])


def test_exams_of_the_spread_measure_the_widest_honest_variants_and_only_once(calibrate, monkeypatch):
    monkeypatch.setattr(cal, "WIDEST", 1)
    calibrate()
    complete, measured = calibrate(spread=2)
    assert complete
    assert len(measured) == 2
    assert set(measured) <= {"eager", "micro-batch 2"}
    assert calibrate(spread=2) == (True, [])


def test_only_what_is_named_is_measured_on_the_exams_of_the_spread_too(calibrate):
    both = ["micro-batch 2", "nothing in the last step"]
    assert calibrate(only=("micro", "nothing"), spread=2) == (True, [*both, *both, "micro-batch 2"])


def test_a_name_that_no_variant_has_is_an_error_that_says_which_there_are(calibrate):
    with pytest.raises(ConfigError, match=r"no variant has 'egaer' in its name; names are for example 'eager'"):
        calibrate(only=("egaer",))


def test_there_is_nothing_to_write_before_there_are_honest_results(calibrate, tmp_path):
    calibrate(only=("nothing",))
    with pytest.raises(ConfigError, match="no limits to write"):
        cal.write_limits(tmp_path / "hparams.toml", "tiny", tmp_path / "out" / "limits.json")


def test_in_joined_files_the_last_line_of_a_variant_and_exam_counts(calibrate, log):
    calibrate()
    lines = log.read_bytes().splitlines(keepends=True)
    again = json.loads(lines[-1]) | {"seconds": 99.0}
    log.write_bytes(b"".join([*lines, lines[0], json.dumps(again).encode() + b"\n"]))
    found = cal.read_results(log)
    assert len(found) == len(FEW)
    assert [r.seconds for r in found if r.variant == again["variant"]] == [99.0]


def test_limits_and_report_are_made_anew_from_results_alone(calibrate, profile, tmp_path, monkeypatch):
    calibrate()
    out = tmp_path / "out"
    made = {name: (out / name).read_bytes() for name in ("limits.json", "report.md")}
    for name in made:
        (out / name).unlink()
    monkeypatch.setattr(cal, "load_reference", None)
    cal.rewrite(cal.CalibrateConfig(profile_name="tiny", profile=profile, device="cpu", out=out))
    assert {name: (out / name).read_bytes() for name in made} == made


def test_a_report_that_is_written_anew_keeps_the_day_of_the_measurement_until_there_are_more_results(calibrate, profile, tmp_path, monkeypatch):
    def day():
        return (tmp_path / "out" / "report.md").read_text().splitlines()[2].split(", ")[-2]

    monkeypatch.setattr(cal.time, "strftime", lambda _: "2001-02-03")
    calibrate()
    monkeypatch.setattr(cal.time, "strftime", lambda _: "2004-05-06")
    cal.rewrite(cal.CalibrateConfig(profile_name="tiny", profile=profile, device="cpu", out=tmp_path / "out"))
    assert day() == "2001-02-03"
    calibrate(exams=2)
    assert day() == "2004-05-06"


def test_what_was_not_measured_is_listed_where_the_architecture_lies_with_weights_that_are_not_at_hand(calibrate, profile, tmp_path, monkeypatch):
    calibrate()
    more = [*FEW, Variant("one more", "shortcut", Recipe(no_update=(0,)), "steps", 0.1, "random")]
    asked = []
    monkeypatch.setattr(cal, "everything", lambda steps, layers, batch, **rest: asked.append((layers, rest["heads"], rest["matrices"])) or list(more))
    elsewhere = msgspec.structs.replace(profile, model=msgspec.structs.replace(profile.model, config="", package="some_weights"))
    monkeypatch.setattr(cal, "open_results", lambda log, *_: cal.read_results(log))
    cal.rewrite(cal.CalibrateConfig(profile_name="tiny", profile=elsewhere, device="cpu", out=tmp_path / "out"))
    assert "- one more" in (tmp_path / "out" / "report.md").read_text().partition("## Not measured")[2]
    assert asked == [(4, 4, 28)]


def test_results_of_a_card_can_be_rewritten_where_there_is_none(calibrate, profile, tmp_path, monkeypatch):
    calibrate()
    monkeypatch.setattr(cal.torch.cuda, "get_device_name", lambda: pytest.fail("the card was asked for its name"))
    cal.rewrite(cal.CalibrateConfig(profile_name="tiny", profile=profile, device="cuda", out=tmp_path / "out"))
    assert "CPU" in (tmp_path / "out" / "report.md").read_text().splitlines()[2], "where they were measured stands in them"


def test_without_results_there_is_nothing_to_make_limits_of(profile, tmp_path):
    with pytest.raises(ConfigError, match=r"no results.*without --from-results"):
        cal.rewrite(cal.CalibrateConfig(profile_name="tiny", profile=profile, device="cpu", out=tmp_path))


# ---------------------------------------------------------------------------------------------------- mixing


def test_results_of_another_workload_are_refused_by_name(calibrate, profile):
    calibrate()
    with pytest.raises(ConfigError, match=r"batch_size was 4, now 2.*--out"):
        calibrate(profile=msgspec.structs.replace(profile, batch_size=2))


def test_limits_and_runs_may_change_between_two_pieces(calibrate, profile):
    calibrate()
    assert calibrate(profile=msgspec.structs.replace(profile, runs=9, limits={})) == (True, [])


def test_a_joined_file_of_another_workload_is_refused(calibrate, log):
    calibrate()
    lines = log.read_bytes().splitlines(keepends=True)
    other = json.loads(lines[0])
    other["header"]["batch_size"] = 99
    log.write_bytes(b"".join([*lines, json.dumps(other, separators=(",", ":")).encode() + b"\n", lines[1]]))
    with pytest.raises(ConfigError, match="batch_size was 99, now 4"):
        calibrate()


def test_a_failure_does_not_take_the_place_of_what_was_measured(calibrate, log):
    calibrate()
    lines = log.read_bytes().splitlines(keepends=True)
    failed = json.loads(lines[1]) | {"error": "out of memory", "statistics": {}}
    log.write_bytes(b"".join([*lines, json.dumps(failed).encode() + b"\n"]))
    assert [r.error for r in cal.read_results(log)] == [""] * len(FEW)


def test_a_variant_that_finds_nothing_to_do_is_told_and_no_result_of_the_population(calibrate, log, tmp_path, monkeypatch):
    idle = Variant("leaves out what it may", "shortcut", Recipe(adaptive=True), "directions", 0.1, "least visible")
    monkeypatch.setattr(cal, "everything", lambda *_, **__: [*FEW, idle])
    calibrate()
    told = {r.variant: r.error for r in cal.read_results(log)}
    assert told == {v.name: "" for v in FEW} | {idle.name: "Inapplicable: it found nothing that it could leave out"}
    assert f"- {idle.name} (exam 0): Inapplicable" in (tmp_path / "out" / "report.md").read_text()


def forget(log, *settings):
    """As if the results were from before there were these."""
    first, *others = log.read_bytes().splitlines(keepends=True)
    found = json.loads(first)
    for setting in settings:
        del found["header"][setting]
    log.write_bytes(json.dumps(found, separators=(",", ":")).encode() + b"\n" + b"".join(others))


@pytest.mark.parametrize(("setting", "value", "said"), [("reference_steps", 1, "audit.reference_steps was 4, now 1"), ("fine_cells", 9, "audit.fine_cells was 8, now 9")])
def test_a_header_from_before_a_setting_means_what_was_done_then(calibrate, profile, log, setting, value, said):
    calibrate(profile=msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, fine_cells=8)))
    forget(log, "audit.reference_steps", "audit.fine_cells")
    with pytest.raises(ConfigError, match=said):
        calibrate(profile=msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, **{"fine_cells": 8, setting: value})))


def test_results_of_a_narrower_vocabulary_are_not_taken_for_those_of_a_wider_one(calibrate, profile, log):
    """There was no such setting when most were measured, and it was 1."""
    calibrate()
    forget(log, "model.vocabulary_scale")
    calibrate()
    with pytest.raises(ConfigError, match=r"model.vocabulary_scale was 1.0, now 2.0"):
        calibrate(profile=msgspec.structs.replace(profile, model=msgspec.structs.replace(profile.model, vocabulary_scale=2.0)))


def test_what_is_measured_after_a_setting_came_has_its_value(calibrate, profile, log):
    """The old results lack the statistic; two kinds of new ones would be one population."""
    calibrate()
    forget(log, "audit.tokens")
    calibrate()
    assert len(cal.read_headers(log)) == 2
    calibrate()
    assert len(cal.read_headers(log)) == 2
    with pytest.raises(ConfigError, match=r"audit.tokens was 64, now 16"):
        calibrate(profile=msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, tokens=16)))


def test_a_file_from_before_there_were_headers_goes_on(calibrate, log):
    calibrate()
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[1:-1]))
    assert calibrate() == (True, [FEW[-1].name])


def test_results_without_anchors_are_no_base_for_limits_of_anchors(calibrate, profile, log):
    calibrate()
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[1:]))
    anchored = msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, anchored_runs=2))
    with pytest.raises(ConfigError, match="without anchored steps"):
        calibrate(profile=anchored)


# ---------------------------------------------------------------------------------------------------- variants


@pytest.fixture(scope="module")
def lab(profile):
    reference = load_reference(profile.model, "cpu", None)
    exam = prepare_exam(reference, SyntheticCorpus(reference.vocabulary), profile, reference.initial, b"x" * 16)
    lab = Lab(reference, profile, exam, reference.initial, keep_states=(STEPS - 2, STEPS - 1))
    lab.measure(Recipe())
    yield lab
    reference.memory.close()


LATE = [v for v in everything(STEPS, 4, 4, cuda=False, low_precision=False, heads=4, matrices=28, sizes=(0.1,)) if v.recipe.first > 1]


@pytest.mark.parametrize("variant", {v.dimension: v for v in LATE if not v.recipe.micro and not v.recipe.early}.values(), ids=lambda v: v.name)
def test_a_shared_start_changes_nothing_that_is_measured(lab, variant):
    alone = Lab(lab.reference, lab.profile, lab.exam, lab.initial, keep_previous=variant.keep_previous)
    shared = Lab(lab.reference, lab.profile, lab.exam, lab.initial, keep_previous=variant.keep_previous, states=lab.states)
    expected, found = ({m.name: m.values for m in one.measure(variant.recipe)[0]} for one in (alone, shared))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-3, abs=1e-7, nan_ok=True), name


@pytest.mark.parametrize(("name", "layers", "heads", "matrices"), [("tiny", 4, 4, 28), ("smol", 30, 9, 210), ("qwen2.5-3b", 36, 16, 252)])
def test_recorded_results_keep_their_names(name, layers, heads, matrices):
    found = hparams.load().profile(name)
    cuda = found.device == "cuda"
    made = {v.name for v in everything(found.steps, layers, found.batch_size, cuda=cuda, low_precision=cuda, heads=heads, matrices=matrices)}
    recorded = {r.variant for r in cal.read_results(hparams.default_path().parent / "docs" / "calibration" / name / "results.jsonl")}
    assert {n for n in recorded if not n.startswith("submission ")} - made == set()


def test_a_variant_acts_from_its_first_step_on_and_not_before(lab):
    """`first` is a promise: the gradients of the steps before it are those of plain training."""
    for variant in LATE:
        one = Lab(lab.reference, lab.profile, lab.exam, lab.initial, keep_previous=variant.keep_previous, copies=copies_for(lab.reference, STEPS))
        (error,) = (m.values for m in one.measure(variant.recipe)[0] if m.name == "gradient_error")
        assert max(error[: variant.recipe.first]) < 1e-4, variant.name


def test_a_frozen_head_leaves_no_trace_in_its_rows_and_columns(lab):
    (variant,) = (v for v in everything(STEPS, 4, 4, cuda=False, low_precision=False, heads=4, sizes=(0.5,)) if v.name == "8 of 16 heads frozen")
    seen = {}

    def look(inner, step):
        variant.recipe.edit_gradients(inner, step)
        for name, parameter in inner.named():
            if name.endswith(("q_proj.weight", "o_proj.weight")):
                dim = 0 if "q_proj" in name else 1
                seen[name] = [not bool(part.any()) for part in parameter.grad.chunk(4, dim)]

    Lab(lab.reference, lab.profile, lab.exam, lab.initial).measure(Recipe(edit_gradients=look))
    queries, outputs = ([v for n, v in sorted(seen.items()) if k in n] for k in ("q_proj", "o_proj"))
    assert queries == outputs
    assert sum(map(sum, queries)) == 8


# ---------------------------------------------------------------------------------------------------- writing


@pytest.fixture
def settings(tmp_path):
    target = tmp_path / "hparams.toml"
    shutil.copy(hparams.default_path(), target)
    return target


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "limits.json"
    path.write_text(json.dumps({"origin": "a test", "limits": {"gradient_error": [0.5, 0.25], "final_loss": [0.125]}}))
    return path


@pytest.mark.parametrize("name", ["tiny", "qwen2.5-3b", "smol"])
def test_limits_replace_those_of_their_profile_and_touch_no_other(settings, made, name):
    before = tomllib.loads(settings.read_text())["profiles"]
    cal.write_limits(settings, name, made)
    after = tomllib.loads(settings.read_text())["profiles"]
    assert after[name].pop("limits") == {"gradient_error": [0.5, 0.25], "final_loss": 0.125}
    assert after[name].pop("limits_origin") == "a test"
    before[name] = {k: v for k, v in before[name].items() if k not in ("limits", "limits_origin")}
    assert after == before


def test_comments_outlive_the_writing_of_limits(settings, made):
    comments = [line for line in settings.read_text().splitlines() if line.startswith("#")]
    cal.write_limits(settings, "tiny", made)
    assert [line for line in settings.read_text().splitlines() if line.startswith("#")] == comments


def test_writing_limits_twice_is_writing_them_once(settings, made):
    cal.write_limits(settings, "smol", made)
    once = settings.read_text()
    cal.write_limits(settings, "smol", made)
    assert settings.read_text() == once


def test_a_profile_that_hparams_lacks_is_named(settings, made):
    with pytest.raises(ConfigError, match="no profile huge"):
        cal.write_limits(settings, "huge", made)


def test_a_shortcut_that_was_not_measured_is_listed(calibrate, tmp_path, monkeypatch):
    more = [*FEW, Variant("one more", "shortcut", Recipe(no_update=(0,)), "steps", 0.1, "random")]
    monkeypatch.setattr(cal, "everything", lambda *_, sizes, **__: list(more if len(sizes) > 1 else FEW))
    calibrate(sizes=(0.1,))
    assert "- one more" in (tmp_path / "out" / "report.md").read_text().partition("## Not measured")[2]


# ---------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(("text", "expected"), [(None, SIZES), ("0.01,0.1", (0.01, 0.1)), ("0.5", (0.5,))])
def test_sizes_are_chosen_among_those_that_have_names(text, expected):
    assert cli._sizes(text) == expected


@pytest.mark.parametrize("text", ["0.3", "", "0.01;0.1"])
def test_a_size_that_is_none_lists_them(text):
    with pytest.raises(UsageError, match=r"0\.005, 0\.01"):
        cli._sizes(text)
