"""DICOM: studies, series, slices, pixels, and derived series."""
