"""The science of notebook 06, beyond the report; it stands on `cxr`, never on `utils`."""

from beyond.augmentation import RandomResizedCrop
from beyond.probabilities import (
    adapt_to_shares,
    at_temperature,
    auc_interval,
    binary,
    calibration_error,
    fit_temperature,
    plot_operating_points,
    plot_reliability,
    summary,
    threshold_table,
    two_classes,
)
from beyond.robustness import (
    STRESSES,
    heat_outside,
    image_numbers,
    load_user_image,
    out_of_distribution_warnings,
    score_folder,
    stress_table,
)
