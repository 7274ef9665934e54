"""Handlers that MONAI and ignite lack: training, validation, evaluation and what is kept of them."""

from .adversarial_pairs import AdversarialPairs
from .batch_statistics import BroadcastBuffers
from .checkpoints import EarlyStop, TrainingCheckpoints, WeightsLoader
from .data_wait import ReportDataWait
from .evaluation import ReportDice, ReportSlices
from .gradient_penalty import GradientPenalty
from .held_out import HeldOutGuard
from .linear_decay import LinearDecay
from .modality import ModalityMetric
from .moving_average import StartMovingAverage
from .prior import PriorLoader
from .process_group import join_process_group, leave_process_group
from .sample_grid import SampleGrid
from .training_record import TrainingRecord, extend_record


def __getattr__(name: str) -> object:
    if name in ("load_network", "load_trained_part"):  # named so by bundles made for 0.1.0
        from medsr_monai.weights import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
