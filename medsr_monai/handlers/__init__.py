"""What MONAI's and ignite's handlers lack."""

from .checkpoints import EarlyStop, TrainingCheckpoints, WeightsLoader, load_weights, save_atomically
from .evaluation import ReportSlices
