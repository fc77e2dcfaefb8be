use serde::{Deserialize, Serialize};

/// A mean and how far it may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half the width of the 95 % confidence interval.
    pub margin: f64,
}

impl Estimate {
    /// Of some values, at least one, with 1.96 standard errors as the margin: right for many values, such as episodes.
    pub fn of(values: &[f64]) -> Self {
        Self::with_quantile(values, 1.96)
    }

    /// Of a few values, with Student's t-quantile in place of 1.96: of a handful of seeds the spread itself is uncertain.
    /// One value tells no spread: its margin is infinite.
    pub fn of_few(values: &[f64]) -> Self {
        match values {
            [] | [_] => Self { mean: values.iter().sum(), margin: f64::INFINITY },
            _ => Self::with_quantile(values, t_quantile(values.len() - 1)),
        }
    }

    fn with_quantile(values: &[f64], quantile: f64) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        Self { mean, margin: quantile * (variance / count).sqrt() }
    }
}

/// The 0.975 quantile of Student's t-distribution with `freedom` degrees of freedom, at least one.
fn t_quantile(freedom: usize) -> f64 {
    // That of one degree of freedom, 12.706, is the largest.
    let (mut low, mut high) = (1.9, 13.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if central_probability(middle, freedom) < 0.95 { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// The probability of `|t| < value`: Abramowitz & Stegun 26.7.3 and 26.7.4, finite sums for whole degrees of freedom.
fn central_probability(value: f64, freedom: usize) -> f64 {
    let angle = (value / (freedom as f64).sqrt()).atan();
    let (sin, cos) = angle.sin_cos();
    let odd = freedom % 2;
    // 1 + (1/2) cos^2 + (1*3)/(2*4) cos^4 + ..., or cos + (2/3) cos^3 + ...
    let (mut term, mut sum) = (if odd == 1 { cos } else { 1.0 }, 0.0);
    for index in (odd..freedom.saturating_sub(1)).step_by(2) {
        sum += term;
        term *= cos * cos * (index + 1) as f64 / (index + 2) as f64;
    }
    if odd == 1 { std::f64::consts::FRAC_2_PI * (angle + sin * sum) } else { sin * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, known) in
            [(1, 12.7062), (2, 4.302_65), (3, 3.182_45), (4, 2.776_45), (5, 2.570_58), (9, 2.262_16), (30, 2.042_27)]
        {
            assert!((t_quantile(freedom) - known).abs() < 1e-4, "{freedom}: {}", t_quantile(freedom));
        }
        assert!((t_quantile(100_000) - 1.96).abs() < 1e-3);
    }

    #[test]
    fn intervals_by_hand() {
        // Deviations -2, -1, 0, 1, 2: variance 2.5, standard error sqrt(0.5).
        let few = Estimate::of_few(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(few.mean == 3.0 && (few.margin - 2.776_445 * 0.5_f64.sqrt()).abs() < 1e-5, "{few:?}");
        let many = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(many.mean == 3.0 && (many.margin - 1.96 * 0.5_f64.sqrt()).abs() < 1e-12, "{many:?}");
        assert_eq!(Estimate::of_few(&[2.0]), Estimate { mean: 2.0, margin: f64::INFINITY });
    }
}
