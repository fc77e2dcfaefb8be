//! Gradients against central differences, and the algorithms against their definitions.

use innerloop::{Algorithm, InnerOptimizer, RateKind, Shape, Strategy};
use proptest::prelude::{ProptestConfig, TestCaseError, any, prop_assert, proptest};

use crate::problems::{ALL, Kind, Problem, SMOOTH, VIDEO, distance, normalised, supervised, video};

const STEP: f64 = 1e-5;

/// `(f(x + h) - f(x - h)) / 2h` for every element of what `of` picks out.
fn central(problem: &Problem, of: fn(&mut Problem) -> &mut [f64], f: impl Fn(&Problem) -> f64) -> Vec<f64> {
    let mut moved = problem.clone();
    (0..of(&mut moved).len())
        .map(|i| {
            let before = of(&mut moved)[i];
            let mut at = |x: f64| {
                of(&mut moved)[i] = x;
                f(&moved)
            };
            let slope = (at(before + STEP) - at(before - STEP)) / (2.0 * STEP);
            of(&mut moved)[i] = before;
            slope
        })
        .collect()
}

fn parameters(problem: &mut Problem) -> &mut [f64] {
    problem.parameters[0].values_mut()
}

fn other_parameters(problem: &mut Problem) -> &mut [f64] {
    problem.parameters[1].values_mut()
}

fn rates(problem: &mut Problem) -> &mut [f64] {
    &mut problem.rates[0]
}

fn other_rates(problem: &mut Problem) -> &mut [f64] {
    &mut problem.rates[1]
}

/// What MAML differentiates: the weighted sum of the query losses after each inner step, a mean over the tasks.
fn meta_loss(problem: &Problem, form: Strategy) -> f64 {
    let answer = problem.solve(form, 1);
    let after = &answer.trace_losses[1..];
    if after.is_empty() {
        return answer.losses.mean();
    }
    problem.query_weights().iter().zip(after).map(|(weight, losses)| weight * losses.mean()).sum()
}

/// The same task alone, from other parameters and without any inner step: its gradient is the plain one.
fn unadapted(problem: &Problem, task: usize, parameters: &[Vec<f64>]) -> Problem {
    let mut alone = problem.clone();
    alone.shape = Shape { tasks: 1, ..problem.shape };
    for rows in &mut alone.rows {
        let each = rows.len() / problem.shape.tasks;
        *rows = rows[task * each..][..each].to_vec();
    }
    let inner = alone.inner_mut();
    (inner.steps, inner.algorithm, inner.learn_rates, inner.multi_step) = (0, Algorithm::Maml, false, false);
    inner.rates = RateKind::PerLayerPerStep;
    for (to, from) in alone.parameters.iter_mut().zip(parameters) {
        to.values_mut().copy_from_slice(from);
    }
    // One for each of no steps.
    alone.rates.iter_mut().for_each(Vec::clear);
    alone
}

/// The plain query gradients of one task at its adapted parameters, by network.
fn query_gradient(problem: &Problem, adapted: &[Vec<Vec<f64>>], task: usize) -> Vec<Vec<f64>> {
    let at: Vec<_> = adapted.iter().map(|network| network[task].clone()).collect();
    unadapted(problem, task, &at).solve(Strategy::Materialised, 1).gradient
}

/// MAML or ANIL: gradients against the slopes of the query loss.
fn second_order(mut problem: Problem, (anil, multi_step): (bool, bool)) -> Result<(), TestCaseError> {
    let inner = problem.inner_mut();
    inner.algorithm = if anil { Algorithm::Anil } else { Algorithm::Maml };
    (inner.learn_rates, inner.multi_step) = (true, multi_step && inner.steps > 0);
    for form in problem.forms() {
        let answer = problem.solve(*form, 1);
        let loss = |p: &Problem| meta_loss(p, *form);
        let error = distance(&answer.gradient[0], &central(&problem, parameters, loss));
        prop_assert!(error < 1e-6, "{form}: the gradient is off by {error:e}");
        let error = distance(&answer.rate_gradient[0], &central(&problem, rates, loss));
        prop_assert!(error < 1e-6, "{form}: the rates' gradient is off by {error:e}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// MAML and ANIL (also with S = 0: joint training) differentiate the mean query loss, in the parameters and rates.
    #[test]
    fn supervised_gradients_are_slopes(
        problem in supervised(4, 3, true, SMOOTH),
        flags in any::<(bool, bool)>(),
    ) {
        second_order(problem, flags)?;
    }

    /// The same through batch normalisation.
    #[test]
    fn normalised_gradients_are_slopes(
        problem in normalised(4, 3, true, &SMOOTH[..3]),
        flags in any::<(bool, bool)>(),
    ) {
        second_order(problem, flags)?;
    }

    /// Without inner steps each player gets the slope of its own loss.
    #[test]
    fn plain_video_gradients_are_slopes(problem in video(4, 2, true, &ALL[..2])) {
        let mut problem = problem;
        let inner = problem.inner_mut();
        (inner.algorithm, inner.steps, inner.multi_step) = (Algorithm::Maml, 0, false);
        inner.optimizer = InnerOptimizer::Sgd { momentum: 0.0 };
        inner.weight_decay = 0.0;
        if inner.rates != RateKind::Shared {
            // One for each of no steps.
            problem.rates.iter_mut().for_each(Vec::clear);
        }
        let answer = problem.solve(Strategy::Dual, 1);
        let slope = central(&problem, parameters, |p| p.solve(Strategy::Dual, 1).losses.mean());
        let error = distance(&answer.gradient[0], &slope);
        prop_assert!(error < 1e-6, "the generator's gradient is off by {error:e}");
        if problem.parameters.len() > 1 {
            let loss = |p: &Problem| p.solve(Strategy::Dual, 1).losses.discriminator_mean();
            let error = distance(&answer.gradient[1], &central(&problem, other_parameters, loss));
            prop_assert!(error < 1e-6, "the discriminator's gradient is off by {error:e}");
        }
    }

    /// MAML of the GAN pulls both players' query gradients back through the joint steps: it is the slope of
    /// `mean_t sum <query gradient, adapted parameters>` with the query gradients held.
    #[test]
    fn video_gradients_are_pulled_back(problem in video(3, 2, true, SMOOTH)) {
        let mut problem = problem;
        let inner = problem.inner_mut();
        (inner.algorithm, inner.learn_rates, inner.multi_step) = (Algorithm::Maml, true, false);
        for form in problem.forms() {
            let answer = problem.solve(*form, 1);
            let tasks = problem.shape.tasks;
            let held: Vec<_> = (0..tasks).map(|t| query_gradient(&problem, &answer.adapted, t)).collect();
            let product = |p: &Problem| {
                let adapted = p.solve(*form, 1).adapted;
                let mut sum = 0.0;
                for (network, of_tasks) in adapted.iter().enumerate() {
                    for (task, values) in of_tasks.iter().enumerate() {
                        sum += values.iter().zip(&held[task][network]).map(|(v, g)| v * g).sum::<f64>();
                    }
                }
                sum / tasks as f64
            };
            let mut slopes: Vec<(&str, &[f64], Vec<f64>)> = vec![
                ("generator", &answer.gradient[0], central(&problem, parameters, product)),
                ("generator's rates", &answer.rate_gradient[0], central(&problem, rates, product)),
            ];
            if problem.parameters.len() > 1 {
                slopes.push(("discriminator", &answer.gradient[1], central(&problem, other_parameters, product)));
                slopes.push((
                    "discriminator's rates",
                    &answer.rate_gradient[1],
                    central(&problem, other_rates, product),
                ));
            }
            for (what, got, want) in slopes {
                let error = distance(got, &want);
                prop_assert!(error < 1e-6, "{form}: {what} is off by {error:e}: {got:?}, {want:?}");
            }
        }
    }
}

/// First-order MAML: the mean of the query gradients at the adapted parameters. Reptile: theta less their mean.
fn first_order(problem: &Problem) -> Result<(), TestCaseError> {
    for form in problem.forms() {
        let mut problem = problem.clone();
        problem.inner_mut().algorithm = Algorithm::FirstOrderMaml;
        problem.inner_mut().multi_step = false;
        let decay = std::mem::replace(&mut problem.inner_mut().weight_decay, 0.0);
        let answer = problem.solve(*form, 1);
        let tasks = problem.shape.tasks;
        let each: Vec<_> = (0..tasks).map(|t| query_gradient(&problem, &answer.adapted, t)).collect();
        for (network, got) in answer.gradient.iter().enumerate() {
            let mean = |i: usize| each.iter().map(|g| g[network][i]).sum::<f64>() / tasks as f64;
            let want: Vec<_> = (0..got.len()).map(mean).collect();
            let error = distance(got, &want);
            prop_assert!(error < 1e-10, "{form}: fomaml is off by {error:e}");
        }
        let inner = problem.inner_mut();
        (inner.algorithm, inner.learn_rates, inner.weight_decay) = (Algorithm::Reptile, false, decay);
        let answer = problem.solve(*form, 1);
        for (network, got) in answer.gradient.iter().enumerate() {
            let theta = problem.parameters[network].values();
            let moved = |i: usize| answer.adapted[network].iter().map(|a| theta[i] - a[i]).sum::<f64>();
            let want: Vec<_> = (0..got.len()).map(|i| moved(i) / tasks as f64).collect();
            let error = distance(got, &want);
            prop_assert!(error < 1e-10, "{form}: reptile is off by {error:e}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn first_order_algorithms_are_what_they_say(
        problem in supervised(12, 3, false, ALL)
    ) {
        first_order(&problem)?;
    }

    #[test]
    fn normalised_first_order_algorithms_are_what_they_say(problem in normalised(12, 3, false, &SMOOTH[..3])) {
        first_order(&problem)?;
    }

    #[test]
    fn first_order_video_algorithms_are_what_they_say(problem in video(8, 3, false, VIDEO)) {
        first_order(&problem)?;
    }

    /// With one step the adapted parameters depend on the rates through that step's gradient alone, so that holding it
    /// changes nothing.
    #[test]
    fn one_step_has_one_rate_gradient(problem in supervised(8, 3, false, &[RateKind::Shared, RateKind::PerParameter])) {
        let mut problem = problem;
        let inner = problem.inner_mut();
        (inner.steps, inner.learn_rates, inner.algorithm) = (1, true, Algorithm::Maml);
        for form in problem.forms() {
            let exact = problem.solve(*form, 1).rate_gradient;
            let mut held = problem.clone();
            held.inner_mut().algorithm = Algorithm::FirstOrderMaml;
            let error = distance(&held.solve(*form, 1).rate_gradient[0], &exact[0]);
            prop_assert!(error < 1e-10, "{form}: {error:e}");
        }
    }

    /// Inner gradient steps are gradient steps: one step from theta, full batch, against the plain gradient there.
    #[test]
    fn an_inner_step_descends_the_support_loss(problem in supervised(8, 3, false, &[RateKind::Shared])) {
        let mut problem = problem;
        let inner = problem.inner_mut();
        (inner.steps, inner.minibatch, inner.algorithm) = (1, None, Algorithm::Maml);
        inner.optimizer = InnerOptimizer::Sgd { momentum: 0.0 };
        let Kind::Supervised(_) = &problem.kind else { unreachable!() };
        for form in problem.forms() {
            let answer = problem.solve(*form, 1);
            for task in 0..problem.shape.tasks {
                let theta = vec![problem.parameters[0].values().to_vec()];
                let mut plain = unadapted(&problem, task, &theta);
                // The support set in the query's place.
                plain.shape.queries = plain.shape.shots;
                plain.rows[2] = plain.rows[0].clone();
                plain.rows[3] = plain.rows[1].clone();
                let gradient = &plain.solve(*form, 1).gradient[0];
                let rate = problem.rates[0][0];
                let decay = problem.inner().weight_decay;
                let want: Vec<_> = theta[0].iter().zip(gradient).map(|(t, g)| t - rate * (g + decay * t)).collect();
                let error = distance(&answer.adapted[0][task], &want);
                prop_assert!(error < 1e-12, "{form}: {error:e}");
            }
        }
    }
}
