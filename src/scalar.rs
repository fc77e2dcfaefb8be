//! The number types the crate computes in: `f32` and `f64`.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32` or `f64`, with the elementary functions the networks need.
///
/// The `f32` functions are branch-free polynomials that vectorise (relative error below 3e-7); the `f64` ones are the
/// standard library's.
pub trait Scalar:
    Copy
    + Default
    + Debug
    + Display
    + PartialOrd
    + Send
    + Sync
    + 'static
    + bytemuck::Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + Sum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Numbers of this type in a 512-bit vector register.
    const LANES: usize;
    /// `"f32"` or `"f64"`.
    const NAME: &'static str;

    /// Rounds from double precision.
    fn from_f64(value: f64) -> Self;
    /// Widens to double precision.
    fn to_f64(self) -> f64;
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// The larger of the two.
    fn max(self, other: Self) -> Self;
    /// e to the power `self`.
    fn exp(self) -> Self;
    /// Natural logarithm of `1 + self`, for `self >= 0`.
    fn ln_1p(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;

    /// `1 / (1 + exp(-self))`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let e = (-self.abs()).exp();
        let small = e / (Self::ONE + e);
        if self < Self::ZERO { small } else { Self::ONE - small }
    }

    /// `ln(1 + exp(self))`, without overflow.
    #[inline(always)]
    fn softplus(self) -> Self {
        self.max(Self::ZERO) + (-self.abs()).exp().ln_1p()
    }
}

impl Scalar for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const LANES: usize = 16;
    const NAME: &'static str = "f32";

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    /// Cody-Waite reduction to `[-ln 2 / 2, ln 2 / 2]` and a polynomial of degree 6 (the coefficients of Cephes' `expf`).
    #[inline(always)]
    fn exp(self) -> Self {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
        // Written so that a NaN stays one.
        let x = if self > 88.0 { 88.0 } else { self };
        let x = if x < -87.0 { -87.0 } else { x };
        let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
        let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
        let mut p = 1.987_569_1e-4;
        p = p * r + 1.398_2e-3;
        p = p * r + 8.333_452e-3;
        p = p * r + 4.166_579_6e-2;
        p = p * r + 1.666_666_6e-1;
        p = p * r + 0.5;
        let y = (p * r) * r + r + 1.0;
        let power = f32::from_bits((((n + ROUND).to_bits() as i32) << 23).wrapping_add(0x3f80_0000) as u32);
        let y = y * power;
        if self > 88.8 { f32::INFINITY } else { y }
    }
    #[inline(always)]
    fn ln_1p(self) -> Self {
        f32::ln_1p(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }
    /// An odd polynomial near 0 (Cephes' `tanhf`), `1 - 2 / (exp(2x) + 1)` elsewhere.
    #[inline(always)]
    fn tanh(self) -> Self {
        let x = f32::abs(self);
        let s = x * x;
        let mut p = -5.704_988_7e-3;
        p = p * s + 2.063_909e-2;
        p = p * s - 5.373_971e-2;
        p = p * s + 1.333_144_2e-1;
        p = p * s - 3.333_328e-1;
        let near = p * s * x + x;
        let far = 1.0 - 2.0 / (Scalar::exp(x + x) + 1.0);
        let y = if x < 0.625 { near } else { far };
        f32::copysign(y, self)
    }
}

impl Scalar for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const LANES: usize = 8;
    const NAME: &'static str = "f64";

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f64::mul_add(self, a, b)
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f64::abs(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }
    #[inline(always)]
    fn ln_1p(self) -> Self {
        f64::ln_1p(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f64::ln(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
}

#[cfg(test)]
mod tests {
    use super::Scalar;

    /// Every f32 function against the standard library's f64, over the range the networks meet.
    #[test]
    fn f32_functions_match_f64() {
        for i in -200_000..=200_000 {
            let x = i as f32 * 5e-4;
            let wide = f64::from(x);
            for (name, got, want) in [
                ("exp", f64::from(Scalar::exp(x.clamp(-80.0, 80.0))), wide.clamp(-80.0, 80.0).exp()),
                ("tanh", f64::from(Scalar::tanh(x)), wide.tanh()),
                ("softplus", f64::from(x.softplus()), wide.exp().ln_1p()),
                ("sigmoid", f64::from(x.sigmoid()), 1.0 / (1.0 + (-wide).exp())),
            ] {
                let error = (got - want).abs() / want.abs().max(1e-30);
                assert!(error < 3e-7 || (got - want).abs() < 1e-37, "{name}({x}) = {got}, not {want}: {error:e}");
            }
        }
    }

    #[test]
    fn nan_and_infinity_pass_through() {
        assert!(Scalar::tanh(f32::NAN).is_nan());
        assert!(Scalar::exp(f32::NAN).is_nan());
        assert_eq!(Scalar::tanh(f32::INFINITY), 1.0);
        assert_eq!(Scalar::exp(f32::INFINITY), f32::INFINITY);
        assert!(Scalar::exp(f32::NEG_INFINITY) < 1e-37);
    }
}
