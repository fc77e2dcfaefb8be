//! The `gemm` crate behind a row-major interface, and vector dispatch.

use crate::scalar::Scalar;

/// A strided matrix.
#[derive(Clone, Copy)]
pub(super) struct Matrix<T> {
    pub pointer: *const T,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<T> Matrix<T> {
    /// Row-major, with this many elements from one row to the next.
    pub fn rows(pointer: *const T, row_stride: usize) -> Self {
        Self { pointer, row_stride, column_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Self { pointer: self.pointer, row_stride: self.column_stride, column_stride: self.row_stride }
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Onto<T> {
    /// Nothing: the output is written.
    Nothing,
    /// What the output holds.
    Itself,
    /// Rows from here on, with so many elements from one to the next; none, and every row is added to the same.
    Rows(*const T, usize),
}

impl<T: Scalar> Onto<T> {
    /// The output itself, or nothing.
    pub fn itself(accumulate: bool) -> Self {
        if accumulate { Self::Itself } else { Self::Nothing }
    }

    /// Writes what the product is added to into the output `[m, n]`; says whether there is anything.
    ///
    /// # Safety
    /// The rows are readable, the output, with its stride, is writable.
    #[inline(always)]
    pub unsafe fn write(self, (m, n): (usize, usize), (out, stride): (*mut T, usize)) -> bool {
        if let Self::Rows(rows, row_stride) = self {
            for row in 0..m {
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy_nonoverlapping(rows.add(row * row_stride), out.add(row * stride), n) };
            }
        }
        !matches!(self, Self::Nothing)
    }
}

/// `out (+)= scale * left right` on the calling thread; `out` is `[m, n]` with `out_stride` elements a row.
///
/// # Safety
/// `left` is `[m, k]` and `right` `[k, n]`, both readable; `out` is writable and overlaps neither.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn multiply<T: Scalar>(
    (m, k, n): (usize, usize, usize),
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
    out: *mut T,
    out_stride: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's promise; strides fit in isize because the arena does.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_stride as isize,
            accumulate,
            left.pointer,
            left.column_stride as isize,
            left.row_stride as isize,
            right.pointer,
            right.column_stride as isize,
            right.row_stride as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A computation that is compiled for each vector instruction set.
pub(super) trait Kernel {
    /// `FMA`: the target has fused multiply-add. `WIDE`: it has 32 registers of 512 bits.
    fn run<const FMA: bool, const WIDE: bool>(self);
}

/// Runs a kernel with the widest vectors this machine has.
#[inline]
pub(super) fn dispatch(kernel: impl Kernel) {
    struct Call<K, const FMA: bool, const WIDE: bool>(K);
    impl<K: Kernel, const FMA: bool, const WIDE: bool> pulp::NullaryFnOnce for Call<K, FMA, WIDE> {
        type Output = ();
        #[inline(always)]
        fn call(self) {
            self.0.run::<FMA, WIDE>();
        }
    }
    match pulp::Arch::new() {
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V4(simd) => simd.vectorize(Call::<_, true, true>(kernel)),
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V3(simd) => simd.vectorize(Call::<_, true, false>(kernel)),
        _ if cfg!(target_arch = "aarch64") => kernel.run::<true, false>(),
        _ => kernel.run::<false, false>(),
    }
}

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(super) fn multiply_add<T: Scalar, const FMA: bool>(a: T, b: T, c: T) -> T {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Evaluates an expression with an activation the compiler knows, so that its loop vectorises.
macro_rules! with_activation {
    ($activation:expr, $name:ident => $body:expr) => {
        match $activation {
            $crate::model::Activation::Linear => {
                const $name: $crate::model::Activation = $crate::model::Activation::Linear;
                $body
            }
            $crate::model::Activation::Relu => {
                const $name: $crate::model::Activation = $crate::model::Activation::Relu;
                $body
            }
            $crate::model::Activation::LeakyRelu => {
                const $name: $crate::model::Activation = $crate::model::Activation::LeakyRelu;
                $body
            }
            $crate::model::Activation::Tanh => {
                const $name: $crate::model::Activation = $crate::model::Activation::Tanh;
                $body
            }
            $crate::model::Activation::Sigmoid => {
                const $name: $crate::model::Activation = $crate::model::Activation::Sigmoid;
                $body
            }
        }
    };
}
pub(super) use with_activation;
