"""The batched optimisers against torch's own, trial by trial."""

import pytest
import torch

from reprolib.optimizers import LBFGS, BatchedLBFGS, adam, signed_adam

TRIALS, SIZE = 18, 40
CONVERGES, DIVERGES = 0, 1


def problems():
    """Smooth non-convex problems; number 0 is an easy quadratic, number 1 grows without bound along its descent."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.randn(TRIALS, SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
    target = torch.randn(TRIALS, SIZE, generator=generator, dtype=torch.float64)
    start = torch.randn(TRIALS, SIZE, generator=generator, dtype=torch.float64)

    stiffness = torch.logspace(0, -2, SIZE, dtype=torch.float64)

    def values(x, trials):
        bent = torch.sigmoid((rotation[trials] @ x[:, :, None])[:, :, 0])
        value = (bent - torch.sigmoid(target[trials])).square().sum(1) + (stiffness * x.square()).sum(1)
        value = torch.where(trials == CONVERGES, x.square().sum(1), value)
        return torch.where(trials == DIVERGES, -x.square().square().sum(1), value)

    def objective(x, trials):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = values(x, trials)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    return objective, start


def plain(objective, start, trial, settings, steps):
    """One `torch.optim.LBFGS` on one trial: the point after each step, and the closures spent."""
    x = start[trial].clone().requires_grad_()
    closures = 0
    optimizer = torch.optim.LBFGS(
        [x],
        lr=settings.learning_rate,
        max_iter=settings.max_iter,
        history_size=settings.history_size,
        tolerance_grad=settings.tolerance_grad,
        tolerance_change=settings.tolerance_change,
        line_search_fn=None if settings.line_search == "none" else settings.line_search,
    )

    def closure():
        nonlocal closures
        closures += 1
        value, gradient = objective(x.detach()[None], torch.tensor([trial]))
        x.grad = gradient[0]
        return value[0]

    path = []
    for _ in range(steps):
        optimizer.step(closure)
        path.append(x.detach().clone())
    return path, closures


@pytest.mark.parametrize("line_search", ["none", "strong_wolfe"])
@pytest.mark.parametrize("history_size", [100, 7])
def test_every_trial_follows_torch(line_search, history_size):
    objective, start = problems()
    settings = LBFGS(line_search=line_search, history_size=history_size)
    batched = BatchedLBFGS(objective, start, settings)
    paths = [plain(objective, start, trial, settings, 3)[0] for trial in range(TRIALS)]
    for step in range(3):
        batched.step()
        for trial in range(TRIALS):
            expected = paths[trial][step]
            if expected.isfinite().all() and not batched.minimum.diverged[trial]:
                torch.testing.assert_close(batched.minimum.last[trial], expected, rtol=1e-6, atol=1e-6)
    assert batched.minimum.converged[CONVERGES]
    assert batched.minimum.diverged[DIVERGES] or batched.minimum.objective[DIVERGES] < -1e12
    assert batched.minimum.last.isfinite().all()
    assert batched.minimum.diverged.sum() <= 1, "one trial's divergence must not touch its neighbours"


@pytest.mark.parametrize("line_search", ["none", "strong_wolfe"])
def test_a_trial_does_not_depend_on_its_neighbours(line_search):
    objective, start = problems()
    together = BatchedLBFGS(objective, start, LBFGS(line_search=line_search))
    for _ in range(4):
        together.step()
    for trial in (2, 9, 17):

        def alone(x, trials, trial=trial):
            return objective(x, torch.full_like(trials, trial))

        single = BatchedLBFGS(alone, start[trial][None], LBFGS(line_search=line_search))
        for _ in range(4):
            single.step()
        torch.testing.assert_close(single.minimum.last[0], together.minimum.last[trial], rtol=1e-9, atol=1e-9)
        assert single.minimum.evaluations[0] == together.minimum.evaluations[trial]


def test_many_victims_in_one_torch_optimiser_are_another_algorithm():
    objective, start = problems()
    shared = start[2:6].clone().requires_grad_()
    optimizer = torch.optim.LBFGS([shared], max_iter=5)

    def closure():
        value, shared.grad = objective(shared.detach(), torch.arange(2, 6))
        return value.sum()

    batched = BatchedLBFGS(objective, start, LBFGS(max_iter=5))
    batched.step()
    optimizer.step(closure)
    assert (batched.minimum.last[2:6] - shared.detach()).abs().max() > 1e-3


def test_evaluations_are_torchs_without_the_repeated_first_of_each_step():
    objective, start = problems()
    settings = LBFGS(max_iter=6)
    batched = BatchedLBFGS(objective, start, settings)
    for _ in range(2):
        batched.step()
    _, closures = plain(objective, start, 5, settings, 2)
    # torch leaves the last point of a full step to the next step to evaluate: here it is known when the step ends
    assert closures == 12
    assert batched.minimum.evaluations[5] == 13


def test_best_and_last_differ_where_the_objective_rose():
    objective, start = problems()
    batched = BatchedLBFGS(objective, start, LBFGS(learning_rate=1.9))
    for _ in range(3):
        batched.step()
    assert (batched.minimum.best_objective <= batched.minimum.objective).all()
    value, _ = objective(batched.minimum.best, torch.arange(TRIALS))
    torch.testing.assert_close(value, batched.minimum.best_objective)


def test_stopped_trials_stay_where_they_are_and_cost_nothing():
    objective, start = problems()
    batched = BatchedLBFGS(objective, start, LBFGS())
    batched.step()
    batched.stop(torch.arange(2, TRIALS))
    where, spent = batched.minimum.last[2:].clone(), batched.minimum.evaluations[2:].clone()
    batched.step()
    assert torch.equal(batched.minimum.last[2:], where)
    assert torch.equal(batched.minimum.evaluations[2:], spent)


def test_a_restarted_trial_is_a_fresh_one_and_its_neighbours_do_not_notice():
    objective, start = problems()
    batched, calm = (BatchedLBFGS(objective, start, LBFGS()) for _ in range(2))
    for optimizer in (batched, calm):
        for _ in range(2):
            optimizer.step()
    batched.compact()
    again, spent = torch.tensor([3, CONVERGES]), batched.minimum.evaluations.clone()
    batched.restart(again, start[again] + 0.1)
    fresh = BatchedLBFGS(lambda x, trials: objective(x, again[trials]), start[again] + 0.1, LBFGS())
    for optimizer in (batched, calm, fresh):
        for _ in range(2):
            optimizer.step()
    for name in ("last", "best", "objective", "best_objective", "converged", "diverged"):
        theirs = getattr(fresh.minimum, name)
        torch.testing.assert_close(getattr(batched.minimum, name)[again], theirs, rtol=1e-9, atol=1e-9)
    assert torch.equal(batched.minimum.evaluations[again], spent[again] + fresh.minimum.evaluations)
    others = ~torch.isin(torch.arange(TRIALS), again)
    torch.testing.assert_close(batched.minimum.last[others], calm.minimum.last[others], rtol=1e-9, atol=1e-9)
    assert torch.equal(batched.alive[others], calm.alive[others])


@pytest.mark.parametrize(("batched", "shape"), [(adam, lambda g: g), (signed_adam, torch.sign)])
def test_adam_is_torchs_on_each_trial(batched, shape):
    objective, start = problems()
    start = start.clone()
    *_, minimum = batched(objective, start, 30, 0.05, milestones=(20,))
    for trial in (0, 7, 11):
        x = start[trial].clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.05)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20])
        for _ in range(30):
            x.grad = shape(objective(x.detach()[None], torch.tensor([trial]))[1][0])
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(minimum.last[trial], x.detach())
    assert (minimum.evaluations[2:] == 31).all()


def test_adam_ends_a_trial_whose_objective_is_not_finite():
    def objective(x, trials):
        value = x.square().sum(1)
        value = torch.where((trials == 1) & (x[:, 0] < 0.5), torch.nan, value)
        return value, 2 * x

    *_, minimum = adam(objective, torch.ones(3, 2), 40, 0.05)
    assert minimum.diverged.tolist() == [False, True, False]
    assert 0.4 < minimum.last[1, 0] < 0.6
    torch.testing.assert_close(minimum.last[0], minimum.last[2])
    assert minimum.evaluations[1] < minimum.evaluations[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"line_search": "armijo"}, "line_search must be one of 'none', 'strong_wolfe', got 'armijo'"),
        ({"learning_rate": 0}, "learning_rate must be a finite number > 0, got 0"),
        ({"history_size": -1}, "history_size must be a whole number >= 1, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LBFGS(**settings)
