"""Experiments of the chapters: a file for those of one chapter, under its name, and others for what several share.

Shared are `networks` (an attack on many images under many networks), `batches` (drawn from a set), `labels` (labels
read off gradients) and `gallery` (every attack on the same images). `training`, `generators` and `utility` train
victims, decoders and priors, and measure what a defense costs. Nothing below imports from here.
"""

from reprolib.experiments.batches import Batches, draw
from reprolib.experiments.cocktail_party import (
    Room,
    SingleRoom,
    Stretched,
    by_chance,
    decoded_features,
    mixtures,
    of_full_rank,
    spectra,
    swept,
    unmixed,
)
from reprolib.experiments.defenses import (
    attack_after_feedback,
    attack_encoded,
    decode_client,
    denoised,
    encoded_mean_guess,
    policy_victim,
    search_policies,
    without_noise,
)
from reprolib.experiments.dlg import follow
from reprolib.experiments.fgla import (
    blends,
    compared,
    decoded,
    masked_searches,
    natural,
    oracle,
    pipeline,
    restored_labels,
    unseen_classes,
)
from reprolib.experiments.gallery import every_attack
from reprolib.experiments.ggl import (
    drift,
    guesses,
    landscape,
    nulls,
    of_the_picture,
    planted,
    race,
    readings,
    upside_down,
    watch,
)
from reprolib.experiments.gradinversion import mode_mismatch
from reprolib.experiments.ig import read_first_layer, trace
from reprolib.experiments.labels import count_labels, head_gradients, predict_labels, read_labels
from reprolib.experiments.networks import (
    Attacked,
    attack_networks,
    attack_trials,
    baselines,
    evaluations_to,
    in_order,
    network_seed,
)
from reprolib.experiments.precode import (
    closed_form,
    noise_after_training,
    noise_at_truth,
    noise_by_layer,
    objective_curves,
)
from reprolib.experiments.recognition import recognised
from reprolib.experiments.separation import fresh_head, heads_in_training, separation_errors, speed
from reprolib.experiments.soteria import cost_of_the_truth, examine_soteria

__all__ = [
    "unmixed",
    "upside_down",
    "by_chance",
    "SingleRoom",
    "Stretched",
    "swept",
    "spectra",
    "mixtures",
    "of_full_rank",
    "decoded_features",
    "Room",
    "masked_searches",
    "unseen_classes",
    "speed",
    "separation_errors",
    "restored_labels",
    "pipeline",
    "natural",
    "heads_in_training",
    "fresh_head",
    "draw",
    "drift",
    "decoded",
    "compared",
    "blends",
    "Attacked",
    "Batches",
    "oracle",
    "attack_after_feedback",
    "attack_encoded",
    "attack_trials",
    "baselines",
    "attack_networks",
    "closed_form",
    "cost_of_the_truth",
    "count_labels",
    "decode_client",
    "denoised",
    "encoded_mean_guess",
    "evaluations_to",
    "every_attack",
    "examine_soteria",
    "follow",
    "head_gradients",
    "guesses",
    "in_order",
    "landscape",
    "mode_mismatch",
    "network_seed",
    "noise_after_training",
    "noise_at_truth",
    "noise_by_layer",
    "objective_curves",
    "nulls",
    "of_the_picture",
    "planted",
    "policy_victim",
    "predict_labels",
    "race",
    "recognised",
    "read_first_layer",
    "read_labels",
    "readings",
    "search_policies",
    "trace",
    "watch",
    "without_noise",
]
