"""The reported share of waiting is the true one."""

import logging
import time

import pytest
from ignite.engine import Engine, Events

from medsr_monai.handlers import ReportDataWait


class SlowBatches:
    """Batches that take a known time, and iteration that takes time to begin, as of loaders that start workers."""

    def __init__(self, seconds, count=5, start=0.0):
        self.seconds, self.count, self.start = seconds, count, start

    def __len__(self):
        return self.count

    def __iter__(self):
        time.sleep(self.start)
        for number in range(self.count):
            time.sleep(self.seconds)
            yield number


def train(batches, step, caplog, epochs=2, limit=0.05):
    trainer = Engine(lambda engine, batch: time.sleep(step))
    # what comes before the report in a bundle, takes long and is no step: a validation
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: time.sleep(0.3))
    report = ReportDataWait(limit)
    report.attach(trainer)
    shares = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: shares.append(report.share))
    with caplog.at_level(logging.INFO, logger="medsr_monai"):
        trainer.run(batches, max_epochs=epochs)
    said = [r for r in caplog.records if r.name == "medsr_monai.handlers.data_wait"]
    assert len(said) == len(shares) == epochs
    return report, shares, said


def test_share_of_known_times(caplog):
    """0.06 of 0.06 + 0.14 s, five times an epoch; a sleeping process takes a little longer than it asked for."""
    report, shares, said = train(SlowBatches(0.06), 0.14, caplog)
    assert shares == pytest.approx([0.3, 0.3], abs=0.04)
    assert report.steps_per_second == pytest.approx(5, rel=0.15)
    for epoch, (record, share) in enumerate(zip(said, shares, strict=True), start=1):
        assert record.levelno == logging.WARNING
        text = record.getMessage()
        assert text.startswith(f"epoch {epoch}, process 0: {100 * share:.1f} % of the time waiting for data, ")
        assert "steps/s. More than 5 %: let --num_workers" in text


def test_the_beginning_of_an_epoch_counts(caplog):
    _, shares, _ = train(SlowBatches(0, start=0.25), 0.05, caplog)
    assert shares == pytest.approx([0.5, 0.5], abs=0.06)


def test_no_warning_below_the_limit(caplog):
    _, shares, said = train(SlowBatches(0.001), 0.1, caplog)
    assert max(shares) < 0.05 and {r.levelno for r in said} == {logging.INFO}
    assert "% of the time waiting for data" in said[0].getMessage()


def test_other_processes_only_warn(caplog, monkeypatch):
    monkeypatch.setattr("medsr_monai.handlers.data_wait.process_number", lambda: 1)
    trainer = Engine(lambda engine, batch: time.sleep(0.1))
    ReportDataWait().attach(trainer)
    with caplog.at_level(logging.INFO, logger="medsr_monai"):
        trainer.run(SlowBatches(0), max_epochs=1)
        assert not caplog.records or not any("waiting" in r.getMessage() for r in caplog.records)
        trainer.run(SlowBatches(0.1), max_epochs=1)
    assert any("process 1" in r.getMessage() for r in caplog.records)
