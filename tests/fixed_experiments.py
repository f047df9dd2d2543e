"""Fixed numbers of experiments: the rows that they build, at tiny counts, and trainings of a step or two."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from unittest import mock

import torch
from fixed import SINGLE, case, drawn, images_of, known, victim

from reprolib import attacks, defenses, experiments, models, servers
from reprolib.book.chapter import Chapter
from reprolib.data import ImageSet
from reprolib.experiments import (
    Batches,
    batches,
    cocktail_party,
    generators,
    ggl,
    gradinversion,
    grnn,
    ig,
    labels,
    networks,
    precode,
    rivals,
    rtf,
    separation,
    soteria,
    spear,
)
from reprolib.experiments import defenses as of_defenses
from reprolib.experiments import fgla as of_fgla
from reprolib.federated import client

CPU = torch.device("cpu")
SHAPE, BOXES = (3, 8, 8), (3, 16, 16)


def pool(count: int = 40, shape: tuple[int, int, int] = SHAPE, seed: int = 5) -> ImageSet:
    """Images that have a little in common with others of their class."""
    own = images_of(count, shape, seed=seed)
    common = drawn(4, *shape, seed=77).float()
    return replace(own, images=0.5 * own.images + 0.5 * common[own.labels])


SMOOTH = attacks.InvertingGradients(iterations=2, learning_rate=0.1)
DLG = attacks.DLG(iterations=1, max_iter=2)


def same_bottleneck() -> object:
    """PRECODE draws its bottleneck for a victim's last bit, which processors do not agree on."""
    return mock.patch.object(models, "fingerprint", lambda model: "c0ffee")


@case("batches drawn")
def _() -> object:
    own, found = pool(), {}
    for sampler, size in product(("distinct", "relabel", "natural"), (1, 3)):
        found[f"{sampler} {size}"] = batches.draw(own, size, 3, sampler, 9 if sampler == "relabel" else 4, 2)
    return found, Batches(own, 2, 4, "relabel", 5, 1).drawn([3, 1]), networks.network_seed(3, 17)


@case("networks attacked", rtol=SINGLE)
def _() -> object:
    own, judge, found = pool(), models.build("convnet8", 4, SHAPE, 3, width=2), {}
    told = {
        "images": own,
        "trials": [0, 2, 3],
        "each": 2,
        "seed": 1,
        "device": CPU,
        "model": "mlp",
        "options": {"width": 6},
    }
    ways = {
        "labels known": {"attack": SMOOTH, "threat": known(), "pool": own, "judge": judge, "watch": 0.2},
        "defended": {"attack": DLG, "defense": defenses.GaussianNoise(0.01), "watch": 0.3},
        "batches": {"attack": SMOOTH, "threat": known(), "batch": 3, "distinct_labels": True},
        "local": {"attack": SMOOTH, "threat": known(), "local": client.LocalTraining(2, 1, 0.1)},
        "trained": {"attack": DLG, "trained_on": own, "train_steps": 2},
    }
    for name, way in ways.items():
        found[name] = networks.attack_trials(**(told | way))
    history = attacks.History(
        [0, 1], drawn(2, 3), torch.tensor([[1, 2, 3], [4, 5, 6]]), drawn(2, 3, 2, *SHAPE), drawn(1)
    )
    near = history.images[1] + 0.01
    found["spent"] = [networks.evaluations_to(history, near, 0.1), networks.in_order(near.flip(1), near)]
    return found | {"hidden": [networks.one_hidden(SHAPE, 3, 5, 1, kind) for kind in networks.ACTIVATIONS][0]}


@case("networks attacked in parts", rtol=SINGLE)
def _() -> object:
    chapter = mock.Mock(spec=Chapter, seed=2, device=CPU)
    chapter.part.side_effect = lambda name, compute, pictures=0, **told: compute(**told)
    with mock.patch.object(networks, "TOGETHER", 4):
        found = experiments.attack_networks(chapter, "it", DLG, pool(), 3, 2, model="mlp", width=5)
    return found, [call.args[0] for call in chapter.part.call_args_list]


@case("labels read, predicted and counted", rtol=SINGLE)
def _() -> object:
    own = pool()
    return [
        labels.read_labels(own, 2, 3, 1, model="mlp", width=6),
        labels.read_labels(own, 1, 4, 1, defenses.GaussianNoise(0.3), activation="relu", init="default"),
        labels.predict_labels(own, 2, 2, 1, (0.1, 1.0)),
        labels.head_gradients(3, 5, 2, smoothing=0.1, shift=0.5, features=4),
        labels.count_labels(own, (2, 6), 2, 1, model="mlp", width=6),
        labels.count_labels(own, (3,), 2, 1, distinct=True, mode="train", model="resnetbn8", width=4),
    ]


@case("separations of features", rtol=SINGLE)
def _() -> object:
    own, trunk = pool(), models.build("convnet8", 4, SHAPE, 0, width=2)
    ways = ({}, {"smoothing": 0.2}, {"with_bias": False}, {"noise": 1e-3})
    errors = [separation.separation_errors(trunk, own, ((6, 2), (9, 3)), 2, 1, 2, **way) for way in ways]
    return (
        errors,
        separation.heads_in_training(trunk, own, own, (0, 2), 3, 2, 1, 2),
        separation.fresh_head(trunk, 6, 2).head,
    )


@case("FGLA's and HCGLA's experiments", rtol=SINGLE)
def _() -> object:
    own, public = pool(), pool(20, seed=8)
    trunk = models.build("convnet8", 9, SHAPE, 0, width=2)
    decoder = models.build_generator("decoder", SHAPE, 1, channels=8, widths=(4, 3))
    attack, drawn_ = attacks.FGLA(decoder, missing_offset="none"), Batches(own, 3, 3, "relabel", 9, 1)
    recipe = generators.DecoderRecipe(1, decoder={"channels": 8, "widths": (4, 3)}, batch_size=4)
    return [
        of_fgla.decoded(trunk, {"a": attack, "b": attacks.FGLA.official(decoder)}, drawn_, public, 1, [0, 2]),
        of_fgla.compared(trunk, {"a": attack}, drawn_, 1, [1], client.ThreatModel(), defenses.TopK(0.9)),
        of_fgla.blends(trunk, attack, own, 4, 2, 1),
        of_fgla.natural(trunk, attack, own, 5, 2, 1),
        of_fgla.restored_labels(trunk, own, ((6, 3), (9, 2)), 2, 1),
        of_fgla.pipeline(trunk, attack, drawn_, (8, 2, 2)),
        of_fgla.oracle(trunk, decoder, own, 4, CPU),
        of_fgla.unseen_classes(trunk, recipe, public, own, (1, 3), 3, CPU),
        experiments.recognised(trunk, attack, drawn_, public, [0, 1], 2, defenses.TopK(0.9)),
    ]


@case("guesses that take no gradient", rtol=SINGLE)
def _() -> object:
    own, public = pool(), pool(20, seed=8)
    prior = models.build_generator("vae", SHAPE, 0, latent_dim=3, width=2)
    with mock.patch.object(generators, "SEARCH_STEPS", 3), mock.patch.object(generators.nearest, "__defaults__", (3,)):
        made = [ggl.guesses(prior, own, public, 4, 1), ggl.prior_at_best(prior, own, public, 3, 1)]
    return [
        *made,
        ig.guesses(own, public, 4, 1),
        ig.grey_cards(own, [0, 2], 1, 3, True),
        gradinversion.guesses(own, [0, 2], 1, 2),
        grnn.without_gradient(own, public, 4, 1),
        grnn.nearest_public(own, public, 4, 1),
        grnn.grey(own, 2, 3, 1),
        grnn.out_of_reach(own, 4, 1),
        networks.baselines(own, public, 5, 1, 0.1),
        of_defenses.mean_guess(own, public, 4, 1),
        of_defenses.encoded_mean_guess(own, public, defenses.MixUp(public), 3, 1),
        of_defenses.random_spectra(own.images[:8], client.generator(1, 0)),
    ]


@case("experiments of Inverting Gradients and DLG", rtol=SINGLE)
def _() -> object:
    own = pool()
    local = client.LocalTraining(2, 1, 0.05)
    return [
        ig.trace(SMOOTH, own, 2, (0, 1, 2), 1, CPU),
        ig.read_first_layer(own, (1, 3), 6, 2, local, 1, width=6)["rows"].drop(columns="error").query("batch > 1"),
        ig.read_rows(own, (2, 4), 4, 2, 1, 0.05, width=30, activation="relu"),
        ig.local_motion(own, [0, 1, 2], 2, 1, ((2, 0.1), (3, 0.5)), "mlp", width=6),
        ig.first_distances(own, [0, 1, 2], 2, 1, 0.5),
        experiments.follow({"a": DLG, "b": replace(DLG, labels="joint")}, own, 2, (0, 1), 1, CPU),
        experiments.every_attack(own, {"a": (SMOOTH, victim("mlp", SHAPE).float())}, 1, CPU, own),
    ]


@case("experiments of GradInversion", rtol=SINGLE)
def _() -> object:
    own, options = pool(48), {"width": 4}
    attack = attacks.GradInversion(iterations=2, warmup=1, seeds=1, labels="known", group=0.0)
    exact = known(mode="train", batch_norm="exact")
    model = models.build("resnetbn8", 4, SHAPE, 1, **options)
    ways = {"a": (attack, exact), "b": (SMOOTH, known())}
    told = {"options": options, "trained_on": own, "train_steps": 1, "batch": 2, "distinct_labels": True}
    return [
        gradinversion.attack_apart(ways, own, [0, 1, 2], 2, 1, CPU, **told),
        gradinversion.weighed_terms(attack, own, [0, 1], 1, CPU, threat=exact, batch=2, options=options),
        gradinversion.labels_after_training(own, [0, 1], 3, 2, 1, CPU, trained_on=own, train_steps=1, **options),
        gradinversion.labels_apart(model, own, 3, [0, 2], 1),
        gradinversion.labels_by_activation(own, [0, 1], 3, 1, **options),
        gradinversion.mode_mismatch(model, own, 3, 2, 1),
        gradinversion.statistics_from_buffers(model, own, 3, 2, 1).drop(columns="error"),
    ]


@case("experiments of Soteria", rtol=SINGLE)
def _() -> object:
    own, defense = pool(), defenses.Soteria(40.0)
    options = {"activation": "relu", "init": "default"}
    victims = {"a": {"name": "lenet", **options}, "b": {"name": "mlp", "width": 6}}
    exact = soteria.examine_soteria(own, 2, defense, 1, 12)
    return [
        exact[["repeats", "untouched", "label"]],
        soteria.cost_of_the_truth(own, 2, (20.0, 60.0), 1, defense, **options),
        soteria.effective_rates(own, [0, 1, 2], 2, (20.0, 60.0), 1, defense, options=options),
        soteria.features_of_one(own, victims, defense, 1),
        soteria.accuracy_on_defended_gradients(own, own, defense, 2, 4, 2, 1, CPU, (0.01, 0.1)),
    ]


@case("experiments of PRECODE", rtol=SINGLE)
@same_bottleneck()
def _() -> object:
    own, defense, options = pool(), defenses.PRECODE(k=3, beta=0.1), {"width": 6}
    reading = replace(defense, against=defenses.Counter(noise="zero"))
    aims = {"plain": (defense, known()), "told": (reading, known(defense_known=True))}
    return [
        precode.objective_curves(SMOOTH, own, 2, (0, 2), 1, CPU, {"none": None, "it": defense}, "mlp", **options),
        precode.noise_at_truth(own, 2, 1, CPU, defense, "mlp", **options).query(
            "noise != \"the client's\" or image != 'true'"
        ),
        precode.noise_by_layer(own, 2, 1, CPU, defense, "mlp", **options),
        precode.closed_form(own, 2, 1, CPU, defense, "mlp", **options)[["label"]],
        precode.noise_after_training(own, own, (0, 2), 1, CPU, defense, "mlp", **options),
        precode.attack_trained(SMOOTH, own, [0, 1, 2], 2, 1, CPU, own, 1, defense, aims, "mlp", **options),
        precode.losses_of_training(own, own, defense, (0, 1), (0, 1), 1, CPU, "mlp", 8, **options),
    ]


@case("experiments of GGL", rtol=SINGLE)
def _() -> object:
    own, public = pool(), pool(20, seed=8)
    prior = models.build_generator("vae", SHAPE, 0, latent_dim=3, width=2)
    attack = attacks.GGL(prior, evaluations=12, population=4, labels="known")
    adam = replace(attacks.GGL.adam(prior), evaluations=4)
    options = {"init": "default"}
    scores = ggl.nulls(attack, own, public, 2, 1, CPU, defenses.RateOfUpdate(0.5), **options)
    cases = {"none": None, "noise": defenses.GaussianNoise(0.01)}
    read = {"pruned": defenses.TopK(0.6), "clipped": defenses.Clipping(0.1)}
    table = scores["scores"].assign(control=scores["scores"].control.str.replace("gradient of another image", "floor"))
    own_rows = table[table.control == "floor"].assign(control="gradient", mse=lambda t: t.mse * 1.2)
    told = experiments.of_the_picture(experiments.ggl.pd.concat([table, own_rows]), "Gaussian of equal length")
    land = ggl.landscape(adam, own, 2, cases, 3, 1, CPU, **options)
    return [
        scores,
        told,
        ggl.planted({"a": replace(attack, labels="inferred"), "b": adam}, prior, 2, 4, 1, CPU),
        ggl.race(
            {"a": replace(attack, labels="inferred"), "b": replace(adam, labels="inferred")}, own, 2, (1, 8), 1, CPU
        ),
        ggl.watch(attack, own, 3, (0, 2), 1, CPU, **options),
        ggl.readings(own, 2, read, 1, CPU, **options),
        {name: value for name, value in land.items() if name != "ranks"},  # of distances that are nearly equal
        ggl.drift(own, 2, 2, client.LocalTraining(2, 1, 0.1), 1, CPU, **options),
    ]


@case("experiments of GRNN", rtol=SINGLE)
def _() -> object:
    own, public = pool(40, BOXES), pool(20, BOXES, seed=8)
    spending = grnn.Spending(replace(DLG, restart_above=0.0), 9)
    few = attacks.GRNN(iterations=2, noise_dim=4, width=2)
    seen = ("gradient", "Gaussian of equal length", "gradient of another image")
    told = {"images": own, "trials": [0, 2], "seed": 1, "device": CPU, "public": public}
    return [
        *[grnn.attack_drawn(few, seen=way, marks=(0, 2), **told) for way in seen],
        grnn.attack_drawn(spending, defense=defenses.GaussianNoise(1e-3), informed=True, normalised=True, **told),
        grnn.attack_drawn(few, batch=2, architecture="cnn", train_steps=1, **told),
        grnn.watch(few, own, 3, (0, 1), 1, CPU),
    ]


@case("experiments of the Cocktail Party", rtol=SINGLE)
def _() -> object:
    own, public = pool(), pool(20, seed=8)
    told = {"images": own, "count": 2, "size": 3, "width": 30, "seed": 1, "public": public}
    rooms = {
        "plain": cocktail_party.Room(**told, first=1),
        "trained": cocktail_party.Room(**told, training=2),
        "clients": cocktail_party.Room(**told, clients=3, local=client.LocalTraining(2, 1, 0.1)),
        "defended": cocktail_party.Room(**told, defense=defenses.TopK(0.3), known=True),
        "single": cocktail_party.SingleRoom(**told),
    }
    found = {}
    for name, room in rooms.items():
        together, update, x = room.shared()
        found[name] = [update.gradients, update.threat, x, together.trials]
    room, ica = rooms["plain"], attacks.DerivativeICA(iterations=3)
    found["spectra"] = cocktail_party.spectra(room).query("index <= 3").drop(columns=["gap", "span"])
    found["chance"] = [cocktail_party.by_chance(room), cocktail_party.by_chance(room, 5)]
    mixed = cocktail_party.mixtures(room)
    found["mixtures"] = {name: value for name, value in mixed.items() if name != "read from it"}
    unmixed = cocktail_party.unmixed(room, {"ica": ica, "stretched": cocktail_party.Stretched(ica)})["scores"]
    found["unmixed"] = unmixed.query("attack == 'mean image'")
    found["upright"] = cocktail_party.upright(drawn(2, 3, *SHAPE), drawn(2, 2, *SHAPE, seed=4))
    trunk = models.build("convnet8", 4, SHAPE, 0, width=2)
    return found | {"behind": cocktail_party.behind_a_trunk(trunk, 5, 4, 1)(drawn(2, *SHAPE))}


@case("experiments of Robbing the Fed", rtol=SINGLE)
def _() -> object:
    own = pool(80)
    holdings = rtf.Holdings(own, 40, 4, 2, 2, 1, dtype=torch.float64)
    block = servers.Imprint(num_bins=8)
    scattered = servers.Imprint(num_bins=8, layout="scattered", rate=0.3)
    robber = attacks.RobbingTheFed(1e-5)
    noisy = defenses.DPSGD(1.0, 0.01)
    sent = replace(block, surrogate=holdings.servers_own).broadcast(holdings.network(0))
    kinds = {"block": block, "scattered": scattered, "honest": experiments.rtf.Honest(), "traps": servers.TrapWeights()}
    rows = rtf.Holdings(
        own, 40, 4, 2, 2, 1, victim="mlp", options=(("width", 12), ("activation", "relu")), normalize=None
    )
    robbed = [
        rtf.robbed(holdings, block, robber, among=20),
        rtf.robbed(holdings, scattered, robber),
        rtf.robbed(holdings, replace(block, shuffled=True), robber, defenses.TopK(0.2), observes="mean of 2"),
        rtf.robbed(rows, servers.TrapWeights(), attacks.TrapRows()),
        rtf.robbed_by_who_knows(holdings, replace(block, layout="sparse"), robber, noisy, 20),
    ]
    kept = [name for name in robbed[0]["batches"] if name not in ("worst", "psnr", "seconds", "chance")]
    tables = [one["batches"][kept] for one in robbed]
    images = holdings.batches()[0][0]
    return [
        tables,
        rtf.first_pictures(robbed[0], 3)["truth"],
        [rtf.passed(sent, images), rtf.alone(sent, images)],
        rtf.guessed(holdings, 20),
        rtf.one_shots(holdings, 6, 4, 2, "avg", 0)[["draw", "alone", "exact"]],
        rtf.prices(rows, own, {"honest": experiments.rtf.Honest()}, 2, (0.01,)),
        rtf.inspected(rows, kinds, defenses.Inspection()),
    ]


@case("experiments of SPEAR", rtol=SINGLE)
def _() -> object:
    own = pool(60)
    clients = spear.Clients(own, 3, 2, 2, 1, width=60)
    guided, many = attacks.MaskGuided(passes=4), attacks.SPEAR(batch_samples=256, max_samples=1024)
    compared = spear.compared(clients, {"guided": guided, "SPEAR": many})["batches"]
    trunk = models.build("convnet8", 4, SHAPE, 0, width=2)
    sparse = spear.sparsity(clients)
    anatomy = spear.anatomy(clients, guided)[["network", "trial", "images", "off", "columns", "certified"]]
    return [
        compared.drop(columns=["cpu", "tried"]),
        anatomy,
        spear.at_once(clients, attacks.MasksAtOnce())[["attack", "network", "trial", "images", "exact", "certified"]],
        [sparse["values"].query("index <= 3"), sparse["zeros"].sum(), sparse["certified"]],
        spear.behind(trunk, 5, 4, 1)(drawn(2, *SHAPE).float()),
        replace(clients, steps=1, dtype="float32").network(1)(drawn(2, *SHAPE).float()),
    ]


@case("experiments of the defenses", rtol=SINGLE)
def _() -> object:
    own, public = pool(), pool(24, seed=8)
    root = of_defenses.OnPublic(of_defenses.graddefense, public, "it", {"std": 0.01, "slices": 5, "perturbed": 2})
    mixed = of_defenses.OnPublic(defenses.MixUp, public, "mixed")
    model = models.build("mlp", 4, SHAPE, 0, width=6)
    rival = [of_defenses.RivalReading(0.01, distance=d) for d in ("squared", "absolute", "cosine")]
    update = client.share(model, own.images[:2, None], own.labels[:2, None])
    readings = [way.counter(model, update) for way in (*rival, rivals.SquaredReading(0.01, trust=0.2))]
    made = [reading.as_shared(update.gradients, torch.arange(2)) for reading in readings]
    threat = client.ThreatModel()
    options = {"init": "default"}
    feedback = [
        of_defenses.attack_after_feedback(SMOOTH, own, public, defenses.TopK(0.5), 2, 2, 1, own, knows, **options)
        for knows in ("nothing", "defense", "feedback")
    ]
    return [
        [str(mixed), mixed.mixes, str(root), readings[0].law, readings[1].law, [r.noise_std for r in readings], made],
        of_defenses.graddefense_slices(model, public),
        of_defenses.denoised(model, own, root, 3, 2, 1),
        of_defenses.without_noise(own, root, 2, 1, **options)[["network", "entries"]],
        of_defenses.attack_encoded(DLG, own, defenses.MixUp(public), 2, 1, own, threat, views=2, **options),
        of_defenses.decode_client(DLG, own, 1, 2, 3, defenses.MixUp, 1, own, defenses.TopK(0.2), **options),
        of_defenses.decode_client(DLG, own, 0, 2, 3, defenses.IntraInstaHide, 1, own, **options)["scores"],
        feedback,
        of_defenses.search_policies(own, ["21-13", "3", "7-4"], 2, 1, 6)["table"],
        rivals.weighed_candidates(own, public, 1.0, (0.01, 3.0), 2, 1),
        [rivals.tuned(lambda x, b=best: -((x - b) ** 2), (0.5, 1.0, 2.0), 3) for best in (9.0, 1.1, 0.1)],
    ]


@case("Learning to Invert from other images", rtol=SINGLE)
def _() -> object:
    own = pool(60)
    attack = attacks.LearningToInvert(replace(pool(60, seed=8), labels=torch.arange(60) % 4), hidden=5, epochs=1)
    told = {"trials": [0, 1], "each": 2, "device": CPU, "model": "mlp", "options": {"width": 5}}
    other = replace(attack, auxiliary=images_of(40, SHAPE, 7))
    return [
        of_defenses.learned_from_other_classes(attack, own, 1, **told)["scores"],
        of_defenses.learned_from_another_set(other, own, seed=1, **told)["scores"],
    ]
