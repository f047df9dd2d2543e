"""The experiments of the chapters: rows that belong to their networks, costs until success, labels under noise."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from reprolib import attacks, data, defenses, experiments, models
from reprolib.attacks import History, labels
from reprolib.book import chapter
from reprolib.experiments import training
from reprolib.experiments.defenses import OnPublic, graddefense
from reprolib.experiments.measures import dlg as dlg_measures
from reprolib.federated import client
from reprolib.measure import intervals, metrics


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "test", 200)


@pytest.fixture
def ch(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_RESULTS", str(tmp_path))
    return chapter.start("dlg", "smoke", seed=3, device="cpu")


SHORT = replace(attacks.DLG.stable(), iterations=2, starts=1)


def test_rows_name_their_network_and_pair_over_defenses(ch, digits):
    run = experiments.attack_networks(ch, "plain", SHORT, digits, networks=3, each=2, pool=digits)
    assert run.scores.network.tolist() == [0, 0, 1, 1, 2, 2]
    assert run.scores.defense.unique().tolist() == ["no defense"]
    assert {"starts", "seconds", "identified"} <= set(run.scores) and "evaluations_to" not in run.scores
    assert run.truth.shape == run.shown.shape == (6, *digits.image_shape)
    hidden = experiments.attack_networks(ch, "int8", SHORT, digits, 3, 2, defense=defenses.CastPrecision("int8"))
    assert torch.equal(hidden.truth, run.truth)
    assert (hidden.scores.label == run.scores.label).all()


def test_a_network_meets_the_same_images_and_dummies_with_fewer_networks_beside_it(ch, digits):
    three = experiments.attack_networks(ch, "three", SHORT, digits, 3, 1).scores
    two = experiments.attack_networks(ch, "two", SHORT, digits, 2, 1).scores
    torch.testing.assert_close(
        torch.tensor(three.mse[:2].to_numpy()), torch.tensor(two.mse.to_numpy()), rtol=1e-3, atol=1e-5
    )


def test_groups_are_parts_that_are_computed_once(ch, digits, monkeypatch, tmp_path):
    monkeypatch.setattr(experiments.networks, "TOGETHER", 2)
    first = experiments.attack_networks(ch, "grouped", SHORT, digits, 3, 1).scores
    assert len(list((tmp_path / "parts").rglob("*-grouped-networks-*.json"))) == 2
    assert first.network.tolist() == [0, 1, 2]
    computed = len(list((tmp_path / "parts").rglob("*.json")))
    again = experiments.attack_networks(ch, "grouped", SHORT, digits, 3, 1).scores
    assert again.equals(first) and len(list((tmp_path / "parts").rglob("*.json"))) == computed


def test_batches_and_trained_victims(ch, digits):
    rows = experiments.attack_networks(ch, "batch", SHORT, digits, 2, 1, batch=2, watch=1e9).scores
    assert rows.network.tolist() == [0, 0, 1, 1] and rows.image.tolist() == [0, 1, 0, 1]
    assert (rows.evaluations_to == 1).all()  # any dummy is below that: after the first look at the start
    train = data.load("digits", "train", 100)
    trained = experiments.attack_networks(ch, "trained", SHORT, digits, 1, 1, trained_on=train, train_steps=3).scores
    fresh = experiments.attack_networks(ch, "fresh", SHORT, digits, 1, 1).scores
    assert trained.mse[0] != fresh.mse[0]


def test_the_cost_until_success_is_read_off_the_snapshots():
    truth = torch.rand(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    far, swapped = truth + 1, truth.flip(1)  # a batch in another order has arrived all the same
    images = torch.stack([far, torch.stack([far[0], swapped[1]]), swapped])
    spent = torch.tensor([[1, 1], [11, 12], [21, 22]])
    history = History([0, 1, 2], torch.zeros(3, 2), spent, images, torch.zeros(3, 2, 2, 3))
    assert experiments.evaluations_to(history, truth, 1e-6).tolist() == [21, 12]
    assert experiments.evaluations_to(history, truth + 5, 1e-6).tolist() == [math.inf] * 2


def test_a_batch_has_arrived_when_its_last_image_has():
    # errors of 0 and 0.0144: their mean is below the threshold, the second image is not
    truth = torch.rand(1, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    almost = truth + torch.tensor([0.0, 0.12]).view(1, 2, 1, 1, 1)
    spent = torch.tensor([[1], [11]])
    history = History([0, 1], torch.zeros(2, 1), spent, torch.stack([almost, truth]), torch.zeros(2, 1, 2, 3))
    assert experiments.evaluations_to(history, truth, 0.01).tolist() == [11]


def test_follow_watches_attacks_from_the_same_pixels(digits):
    both = {"DLG": attacks.DLG.stable(), "iDLG": attacks.IDLG.stable()}
    found = experiments.follow(both, digits, trials=3, steps=(0, 1, 3), seed=0, device=torch.device("cpu"))
    assert found["DLG images"].shape == (3, *digits.image_shape)
    assert torch.equal(found["DLG images"][0], found["iDLG images"][0])
    assert not torch.equal(found["DLG images"][1], found["iDLG images"][1])
    assert len(found["layers"]) == 2 * 3 * 3
    per_parameter = found["layers"].drop(columns=["attack", "trial", "outer", "image"])
    shown = found["layers"].query("attack == 'DLG'").groupby("outer").image.min()
    assert (per_parameter >= 0).all().all() and shown.index.tolist() == [0, 1, 3]


def test_labels_of_clean_gradients_are_all_found(digits):
    rows = experiments.read_labels(digits, networks=3, each=5, seed=0)
    assert len(rows) == 15 and rows.drop(columns="network").all().all()
    noisy = experiments.read_labels(digits, 3, 5, 0, defense=defenses.GaussianNoise(30.0))
    assert not noisy.bias.all()


def test_the_chance_under_noise_agrees_with_drawing_it():
    random = torch.Generator().manual_seed(0)
    scores, truth = torch.randn(3, 6, generator=random, dtype=torch.float64), torch.tensor([0, 3, 5])
    draws = scores + 0.7 * torch.randn(200_000, 3, 6, generator=random, dtype=torch.float64)
    drawn = (draws.argmin(2) == truth).double().mean(0)
    torch.testing.assert_close(labels.chance_under_noise(scores, truth, 0.7), drawn, rtol=0, atol=5e-3)
    assert labels.chance_under_noise(scores, scores.argmin(1), 1e-6).allclose(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="std=0: expected a number above 0"):
        labels.chance_under_noise(scores, truth, 0)


def test_theory_predicts_what_the_rules_find_under_noise(digits):
    theory = experiments.predict_labels(digits, networks=40, each=5, seed=0, levels=(0.3, 3.0))
    for _, row in theory.iterrows():
        rows = experiments.read_labels(digits, 40, 5, 0, defense=defenses.GaussianNoise(row.level))
        for rule in ("row_sum", "bias"):
            found = intervals.proportion(rows[rule], rows.network)
            assert found.low - 0.05 <= row[rule] <= found.high + 0.05


def test_random_heads_have_exact_gradients():
    truth, weight, bias = experiments.head_gradients(50, 4, seed=1, shift=1.2)
    h = weight / bias[:, :, None]
    assert torch.allclose(h[:, 0], h[:, 1], atol=1e-4) and (h[:, 0].sum(1) < 0).all()
    assert (labels.infer(weight, bias, "bias") == truth).all()
    _, _, smooth = experiments.head_gradients(50, 4, seed=1, smoothing=0.1)
    assert ((smooth < 0).sum(1) > 1).any() and torch.allclose(smooth.sum(1), torch.zeros(50), atol=1e-6)


def test_labels_of_batches_are_counted(digits):
    rows = experiments.count_labels(digits, sizes=(2, 12), batches=3, seed=0)
    assert set(rows[rows.batch == 2].rule) == set(labels.COUNT_RULES)
    assert not {"yin", "yin_sum"} & set(rows[rows.batch == 12].rule)  # more images than digits
    assert rows.right.between(0, 1).all() and len(rows) == 3 * (6 + 4)


def test_seeds_of_networks_do_not_meet():
    assert len({experiments.network_seed(s, k) for s in range(3) for k in range(1000)}) == 3000


def test_a_shipped_victim_is_the_one_network_of_all_trials(ch, digits, monkeypatch):
    shipped = models.build("lenet", digits.num_classes, digits.image_shape, seed=9)
    monkeypatch.setattr(training, "victim", {"known": shipped}.__getitem__)
    given = {"threat": client.ThreatModel(labels="known"), "local": client.LocalTraining(2, 1, 0.1)}
    attack = replace(attacks.InvertingGradients(), iterations=2)
    found = experiments.attack_networks(ch, "shipped", attack, digits, 1, 3, checkpoint="known", **given)
    assert found.scores.network.tolist() == [0, 0, 0] and found.scores.label_correct.all()
    x, y = digits.batches(1, 3, seed=3)
    alone = attack(shipped, client.share(shipped, x, y, **given), seed=experiments.network_seed(3, 0))
    torch.testing.assert_close(found.shown, alone.images[:, 0], rtol=0, atol=2.1e-3)  # kept in 8 bits
    with pytest.raises(ValueError, match="checkpoint='known' is one network, but networks=2"):
        experiments.attack_networks(ch, "two", attack, digits, 2, 3, checkpoint="known", **given)


def test_a_trace_begins_at_noise_and_ends_nearer(digits):
    attack = replace(attacks.InvertingGradients(), total_variation=1e-2)
    found = experiments.trace(attack, digits, 2, [0, 5, 60], seed=0, device=torch.device("cpu"))
    rows = found["rows"]
    assert rows.iteration.tolist() == [0, 0, 5, 5, 60, 60] and rows.trial.tolist() == [0, 1] * 3
    ends = rows.groupby("iteration")[["psnr", "distance"]].mean()
    assert ends.psnr[60] > ends.psnr[0] and ends.distance[60] < 0.5 * ends.distance[0]
    assert found["images"].shape == (3, *digits.image_shape) and found["truth"].shape == digits.image_shape


def test_the_first_layer_gives_single_images_and_mixtures_of_batches(digits):
    local = client.LocalTraining(5, 1, 1e-2)
    found = experiments.read_first_layer(digits, (1, 2), 4, 2, local, seed=0, width=64, activation="relu")
    cases = found["rows"].groupby("case", sort=False)
    assert cases.size().to_dict() == {
        "batch of 1": 4,
        "batch of 2": 4,
        "local steps, float32": 4,
        "local steps, float64": 4,
    }
    assert cases.error.max()["batch of 1"] < 1e-5 and cases.error.max()["local steps, float64"] < 1e-9
    assert 1e-7 < cases.error.max()["local steps, float32"] < 1e-2
    assert found["rows"][found["rows"].batch == 2].rms.median() > 0.05
    assert found["rows"].groupby("case").network.nunique().eq(2).all()
    torch.testing.assert_close(found["batch 1 read"], found["batch 1 truth"], rtol=0, atol=1e-5)


def test_labels_are_counted_on_distinct_batches_of_a_shipped_victim(digits):
    shipped = models.build("resnetbn8", digits.num_classes, (1, 8, 8), seed=2, width=4)
    rows = experiments.count_labels(digits, (1, 4), 3, seed=0, distinct=True, mode="train", shipped=shipped)
    assert rows.groupby(["batch", "rule"]).size().eq(3).all() and {"yin", "yin_sum"} <= set(rows.rule)
    assert rows[(rows.batch == 1) & (rows.rule == "yin")].right.eq(1).all()
    drawn = experiments.count_labels(digits, (2,), 2, seed=0, model="resnetbn8", width=4)
    assert drawn.right.between(0, 1).all()
    with pytest.raises(ValueError, match=r"sizes=\[11\] with distinct labels: the images are of 10 classes"):
        experiments.count_labels(digits, (11,), 1, seed=0, distinct=True)


def test_a_judge_adds_what_needs_features(ch, digits):
    judge = models.build("lenet", digits.num_classes, digits.image_shape, seed=1)
    attack = replace(attacks.InvertingGradients(), iterations=2)
    given = {"threat": client.ThreatModel(labels="known"), "pool": digits, "batch": 2}
    scores = experiments.attack_networks(ch, "judged", attack, digits, 2, 1, judge=judge, **given).scores
    assert (scores.registered >= scores.psnr - 1e-6).all() and scores.features.between(0, 2).all()
    assert scores.in_class.dtype == bool and scores.in_class_chance.between(0, 1).all()


def test_only_the_clients_own_mode_matches_its_gradient(digits):
    victim = models.build("resnetbn8", 10, digits.image_shape, seed=0, width=4)
    before = models.fingerprint(victim)
    found = experiments.mode_mismatch(victim, digits, size=4, batches=2, seed=0)
    worst = found.groupby(["client", "attacker"]).mismatch.agg(["min", "max"])
    assert worst.loc[("train", "train"), "max"] < 1e-5 and worst.loc[("eval", "eval"), "max"] < 1e-5
    assert worst.loc[("train", "eval, the client's buffers"), "min"] > 0.1
    assert models.fingerprint(victim) == before


def test_denoising_is_measured_tensor_by_tensor_against_the_clean_mean():
    digits = data.load("digits", "train", 200)
    model = models.build("lenet", 10, digits.image_shape, seed=0)
    defense = OnPublic(graddefense, digits, "GradDefense", {"std": 0.5})
    table = experiments.denoised(model, digits, defense, clients=4, size=2, seed=0)
    assert table.tensor.tolist() == list(dict(model.named_parameters()))
    total = table[["before", "fixed", "official"]].pow(2).sum().pow(0.5)
    # noise of variance (P / S) std^2 / clients in every entry on average
    entries = sum(p.numel() for p in model.parameters())
    assert total.before == pytest.approx((0.5 * 0.25 / 4 * entries) ** 0.5, rel=0.3)
    assert total.fixed < total.before


def test_who_knows_the_seed_has_the_clean_gradient():
    digits = data.load("digits", "train", 100)
    noisy = OnPublic(graddefense, digits, "GradDefense", {"std": 0.1})
    found = experiments.without_noise(digits, noisy, 3, 0)
    assert found.error.max() < 1e-3 and found.network.tolist() == [0, 1, 2]
    entries = sum(p.numel() for p in models.build("lenet", 10, digits.image_shape, seed=0).parameters())
    assert (found.entries > 0).all() and (found.entries < entries).all() and found.entries.nunique() > 1


def test_an_attack_on_altered_data_is_scored_against_what_was_trained_on():
    digits = data.load("digits", "train", 100)
    perfect = _Returns(digits)
    known = client.ThreatModel(labels="known")
    for defense in (None, defenses.MixUp(digits)):
        scores = experiments.attack_encoded(perfect, digits, defense, 2, 0, digits, known)
        assert scores.original_identified.tolist() == [True, True]
        assert (scores.mse == 0).all() == (defense is None)


class _Returns:
    """An attack that knows the originals."""

    def __init__(self, images):
        self.truth = images.batches(1, 2, seed=0)[0]

    def __call__(self, model, update, seed, snapshots=()):
        zeros = torch.zeros(2)
        return attacks.Reconstruction(self.truth, update.labels, zeros, zeros.long(), zeros.long(), zeros.bool(), 0.0)


def test_the_gallery_attacks_the_same_images_under_each_victim(digits):
    lenet = models.build("lenet", 10, digits.image_shape, 0)
    bn = models.build("resnetbn8", 10, digits.image_shape, 0, width=4)
    short = {
        "DLG": (SHORT, lenet),
        "GradInversion": (replace(attacks.GradInversion.paper(), iterations=2, warmup=1, batch_norm=0.0), bn),
    }
    found = experiments.every_attack(digits, short, seed=1, device=torch.device("cpu"), pool=digits)
    assert list(found) == ["truth", "DLG", "GradInversion", "scores"]
    x, y = digits.batches(1, 8, seed=1)
    assert torch.equal(found["truth"], x[:, 0])
    alone = SHORT(
        lenet,
        client.share(lenet, x, y, threat=client.ThreatModel(labels="known")),
        seed=experiments.network_seed(1, 0),
    )
    assert torch.equal(found["DLG"], alone.images[:, 0])
    rows = found["scores"].query("attack == 'DLG'")
    assert rows.psnr.tolist() == pytest.approx(metrics.psnr(alone.images[:, 0], x[:, 0]).tolist())


# --- defenses ---------------------------------------------------------------------------------------------------------


BRIEF = replace(SHORT, iterations=1, max_iter=3)


def test_the_altered_candidates_identify_what_a_shift_hides(digits):
    """An attacker who alters the candidates as the client would finds no less than one who does not."""
    flip = defenses.ATS(("0",), augment=False)  # inverts: the original is then the farthest from what it was made of
    attack = replace(SHORT, iterations=15, labels="known")
    rows = experiments.attack_encoded(
        attack, digits, flip, 4, 0, digits, client.ThreatModel(labels="known"), views=1, init="uniform"
    )
    assert rows.altered_identified.sum() >= 3 and not rows.original_identified.any()


def test_a_network_can_be_given_to_encoded_attacks(digits):
    shipped = models.build("lenet", digits.num_classes, digits.image_shape, seed=5)
    threat = client.ThreatModel(labels="known")
    attack = replace(BRIEF, labels="known")
    one = experiments.attack_encoded(attack, digits, None, 2, 0, digits, threat, victim=shipped)
    drawn = experiments.attack_encoded(attack, digits, None, 2, 0, digits, threat)
    assert (one.mse != drawn.mse).all() and "altered_identified" not in one


@pytest.mark.parametrize("kind", [defenses.MixUp, defenses.IntraInstaHide])
def test_a_clients_encodings_are_collected_and_decoded(kind, digits):
    found = experiments.decode_client(BRIEF, digits, 1, 4, 2, kind, seed=0, pool=digits)
    assert found["scores"].client.tolist() == [1] * 4
    assert {"encoding_psnr", "single_identified", "psnr", "identified"} <= set(found["scores"])
    truth = digits.batches(4, 2, seed=0)[0][1]
    assert torch.equal(found["truth"], truth)
    assert found["decoded"].shape == found["encodings"].shape == truth.shape


def test_an_update_with_a_residual_is_another_one_and_the_first_round_is_not(digits):
    earlier, known, pruned = data.load("digits", "train", 60), replace(BRIEF, labels="known"), defenses.TopK(0.8)

    def run(rounds, knows, defense=pruned):
        return experiments.attack_after_feedback(known, digits, earlier, defense, rounds, 2, 0, digits, knows)

    first = run(0, "defense")
    assert first.mse.tolist() == run(0, "feedback").mse.tolist()
    assert first.mse.tolist() != run(0, "nothing").mse.tolist()
    later = run(2, "defense")
    assert later.mse.tolist() != first.mse.tolist() != run(2, "feedback").mse.tolist()
    with pytest.raises(ValueError, match="sets no bound to what a client withholds"):
        run(2, "feedback", defenses.SignCompression("mean_abs"))


def test_the_first_round_of_feedback_is_the_plain_attack(digits, ch):
    known = replace(BRIEF, labels="known")  # before rounding grows
    threat = client.ThreatModel(labels="known", defense_known=True)
    defense = defenses.TopK(0.8)
    plain = experiments.attack_networks(ch, "plain", known, digits, 2, 1, defense=defense, threat=threat, pool=digits)
    rows = experiments.attack_after_feedback(known, digits, digits, defense, 0, 2, ch.seed, digits, "defense")
    assert rows.mse.to_numpy() == pytest.approx(plain.scores.mse.to_numpy(), rel=1e-3)


def test_policies_are_ranked_by_privacy_on_a_trained_network():
    photos = data.load("photos", "train", 40)
    found = experiments.search_policies(photos, ["21-13-3", "0", "2"], steps=2, seed=0, scored=8)
    assert found["table"].privacy.is_monotonic_increasing
    fresh = experiments.policy_victim(photos, 0)
    assert not torch.equal(found["head.weight"], fresh.head.weight)
    fresh.load_state_dict({name: v for name, v in found.items() if name != "table"}, strict=False)
    assert torch.equal(found["head.weight"], fresh.head.weight)


def test_dlg_counts_named_pictures_nearer_than_the_mean_image_and_a_collapse_as_skewed():
    named = pd.DataFrame({"network": range(6), "identified": [True] * 5 + [False], "psnr": [9, 9, 9, 9, 15, 20]})
    found = dlg_measures.nearer({("prune_30", "official", "static"): named}, 12.6)
    assert found.keys() == {"prune_30_nearer"} and found["prune_30_nearer"].value == pytest.approx(0.2)
    trained = {
        name: pd.DataFrame({"accuracy": shares}) for name, shares in {"none": [0.5, 0.5], "n": [0.4, 0.1]}.items()
    }
    lost = dlg_measures.costs(trained, 800)["utility_drop_n"].interval
    assert lost.value == pytest.approx(0.25) and lost.skewed


def test_dlg_correlates_each_run_apart():
    layers = pd.DataFrame({"trial": [0] * 3 + [1] * 3, "image": [3, 2, 1] * 2, "conv1.weight": [3, 2, 1, 1, 2, 3]})
    assert dlg_measures.correlations(layers) == pytest.approx([1, -1])
