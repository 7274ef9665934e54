"""What MONAI's and ignite's handlers lack."""

from .adversarial_pairs import AdversarialPairs
from .batch_statistics import BroadcastBuffers
from .checkpoints import (
    EarlyStop,
    TrainingCheckpoints,
    WeightsLoader,
    fill_network,
    load_network,
    load_trained_part,
    load_weights,
    read_weights,
    save_atomically,
    transfer_weights,
)
from .data_wait import ReportDataWait
from .evaluation import ReportDice, ReportSlices
from .gradient_penalty import GradientPenalty
from .linear_decay import LinearDecay
from .modality import ModalityMetric
from .moving_average import StartMovingAverage
from .prior import PriorLoader
from .process_group import join_process_group, leave_process_group
from .sample_grid import SampleGrid
from .training_record import TrainingRecord, extend_record
