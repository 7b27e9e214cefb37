"""The metrics: complete from the first scrape, and ages that grow by themselves."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from crusades.metrics import Metrics
from crusades.records import SlotView


def scrape(metrics):
    return {(s.name, *sorted(s.labels.values())): s.value for f in text_string_to_metric_families(metrics.render().decode()) for s in f.samples}


def test_every_status_has_a_number_from_the_start():
    metrics = Metrics()
    metrics.show_counts({"queued": 2})
    seen = scrape(metrics)
    assert seen["crusades_submissions", "queued"] == 2.0
    assert seen["crusades_submissions", "faulted"] == 0.0
    assert seen["crusades_queue_length",] == 2.0


def test_an_age_is_unknown_until_it_happens_and_then_grows():
    now = [100.0]
    metrics = Metrics(clock=lambda: now[0])
    assert str(scrape(metrics)["crusades_chain_head_age_seconds",]) == "nan"
    metrics.happened("chain_head_age_seconds")
    now[0] = 130.0
    assert scrape(metrics)["crusades_chain_head_age_seconds",] == 30.0


@pytest.mark.parametrize("name", ["registered", "validator_permit", "weights_equal", "weights_age_tempos", "disk_free_bytes"])
def test_what_nobody_has_looked_at_yet_is_no_zero(name):
    """A zero would page people at every start."""
    assert str(scrape(Metrics())[f"crusades_{name}",]) == "nan"


def test_a_fault_is_counted_under_whose_it_is():
    metrics = Metrics()
    metrics.count_fault(2002)
    assert scrape(metrics)["crusades_faults_total", "2002", "validator"] == 1.0


def test_a_slot_out_of_service_shows():
    metrics = Metrics()
    metrics.show_slots({"cpu": SlotView(name="cpu", device="cpu", state="out of service")})
    assert scrape(metrics)["crusades_slot_in_service", "cpu"] == 0.0


def test_two_daemons_in_one_process_do_not_share_metrics():
    first, second = Metrics(), Metrics()
    first.head_block.set(7)
    assert scrape(second)["crusades_chain_head_block",] == 0.0
