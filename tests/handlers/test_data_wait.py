"""The reported share of waiting is the true one."""

import logging

import pytest
from ignite.engine import Engine, Events

from medsr_monai.handlers import ReportDataWait


class Clock:
    """Time that passes only in sleep: the shares are exact on a loaded machine, too."""

    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("ignite.handlers.timing.perf_counter", lambda: made.now)
    return made


class SlowBatches:
    """Batches that take a known time, and iteration that takes time to begin, as of loaders that start workers."""

    def __init__(self, clock, seconds, count=5, start=0.0):
        self.clock, self.seconds, self.count, self.start = clock, seconds, count, start

    def __len__(self):
        return self.count

    def __iter__(self):
        self.clock.sleep(self.start)
        for number in range(self.count):
            self.clock.sleep(self.seconds)
            yield number


def train(batches, step, caplog, epochs=2, limit=0.05):
    trainer = Engine(lambda engine, batch: batches.clock.sleep(step))
    # what comes before the report in a bundle, takes long and is no step: a validation
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: batches.clock.sleep(0.3))
    report = ReportDataWait(limit)
    report.attach(trainer)
    shares = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: shares.append(report.share))
    with caplog.at_level(logging.INFO, logger="medsr_monai"):
        trainer.run(batches, max_epochs=epochs)
    said = [r for r in caplog.records if r.name == "medsr_monai.handlers.data_wait"]
    assert len(said) == len(shares) == epochs
    return report, shares, said


def test_share_of_known_times(clock, caplog):
    """0.06 of 0.06 + 0.14 s, five times an epoch."""
    report, shares, said = train(SlowBatches(clock, 0.06), 0.14, caplog)
    assert shares == pytest.approx([0.3, 0.3])
    assert report.steps_per_second == pytest.approx(5)
    for epoch, (record, share) in enumerate(zip(said, shares, strict=True), start=1):
        assert record.levelno == logging.WARNING
        text = record.getMessage()
        assert text.startswith(f"epoch {epoch}, process 0: {100 * share:.1f} % of the time waiting for data, ")
        assert "steps/s. More than 5 %: let --num_workers" in text


def test_the_beginning_of_an_epoch_counts(clock, caplog):
    _, shares, _ = train(SlowBatches(clock, 0, start=0.25), 0.05, caplog)
    assert shares == pytest.approx([0.5, 0.5])


def test_no_warning_below_the_limit(clock, caplog):
    _, shares, said = train(SlowBatches(clock, 0.004), 0.096, caplog)
    assert shares == pytest.approx([0.04, 0.04]) and {r.levelno for r in said} == {logging.INFO}
    assert "% of the time waiting for data" in said[0].getMessage()


def test_other_processes_only_warn(clock, caplog, monkeypatch):
    monkeypatch.setattr("medsr_monai.handlers.data_wait.process_number", lambda: 1)
    trainer = Engine(lambda engine, batch: clock.sleep(0.1))
    ReportDataWait().attach(trainer)
    with caplog.at_level(logging.INFO, logger="medsr_monai"):
        trainer.run(SlowBatches(clock, 0), max_epochs=1)
        assert not caplog.records or not any("waiting" in r.getMessage() for r in caplog.records)
        trainer.run(SlowBatches(clock, 0.1), max_epochs=1)
    assert any("process 1" in r.getMessage() for r in caplog.records)
