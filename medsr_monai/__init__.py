"""Medical image super-resolution as MONAI Bundles. Importing the package imports neither torch nor monai."""

__version__ = "0.1.0"
