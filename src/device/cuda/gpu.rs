use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute_enum, CUfunction, CUfunction_attribute_enum, CUmodule};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result};

use super::driver::{Driver, GraphStep, Kernel, PANEL, PackedMatrix, TensorMap, WRITTEN, WrittenMatrices, block_of};
use super::gpu_graph::GpuGraph;
use super::{finish, hopper};
use crate::device::MatrixPrecision;
use crate::{Error, Result};

/// Bytes of shared memory left to what a kernel declares.
const RESERVED: i32 = 1 << 10;

/// All kernels, for every architecture they were compiled for.
static FATBIN: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("INNERLOOP_FATBIN")));

/// The driver reads the image in words.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

/// A real GPU, through the driver API, which is loaded when the first one is opened.
#[derive(Clone)]
pub struct GpuDriver {
    pub(super) stream: Arc<CudaStream>,
    /// For what goes into graphs.
    pub(super) copies: Arc<CudaStream>,
    pub(super) module: Arc<Module>,
}

/// The kernels, loaded into the device's context.
pub(super) struct Module {
    pub(super) context: Arc<CudaContext>,
    module: CUmodule,
    /// In the order of [`Kernel::ALL`].
    pub(super) functions: Vec<CUfunction>,
    name: String,
    model: String,
    /// Bytes of shared memory that a block can have.
    shared: i32,
    /// Its multiprocessors, if it has kernels of `kernels/hopper.cu`.
    warpgroups: Option<u32>,
}

// SAFETY: handles of the driver, which may be used from any thread that has bound the context.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded by `GpuDriver::open`, and nobody holds its functions any more. An error here means that the
            // context is gone, and the module with it.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

impl GpuDriver {
    /// How many GPUs there are; none without a driver.
    pub fn count() -> usize {
        // SAFETY: looks for the library, no more.
        if !unsafe { sys::is_culib_present() } {
            return 0;
        }
        result::init().and_then(|()| CudaContext::device_count()).map_or(0, |count| count.max(0) as usize)
    }

    /// GPU number `ordinal`, with the kernels loaded.
    ///
    /// # Errors
    /// No driver, no such GPU, or one that the kernels were not compiled for.
    pub fn open(ordinal: usize) -> Result<Self> {
        let field = format!("device cuda:{ordinal}");
        // SAFETY: looks for the library, no more.
        if !unsafe { sys::is_culib_present() } {
            let problem = "no NVIDIA driver on this machine (libcuda was not found)";
            return Err(Error::invalid(field, problem, "a machine with the driver installed, or device cpu"));
        }
        let refused = |what: &str, error: DriverError, expected: &str| {
            Error::invalid(field.as_str(), format!("{what}: {}", words(error)), expected)
        };
        result::init()
            .map_err(|e| refused("the driver does not start", e, "a working driver and a GPU, or device cpu"))?;
        let count = Self::count();
        if ordinal >= count {
            let expected = if count == 0 { "device cpu".into() } else { format!("cuda:0 to cuda:{}", count - 1) };
            return Err(Error::invalid(field, format!("this machine has {count} GPUs"), expected));
        }
        let context = CudaContext::new(ordinal).map_err(|e| refused("no context", e, "a GPU that is free"))?;
        // SAFETY: one stream carries everything out but the copies into graphs, whose order is kept by events of their own.
        unsafe { context.disable_event_tracking() };
        let described = || -> Result<(String, String, Option<u32>), DriverError> {
            let (major, minor) = context.compute_capability()?;
            let count = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let hopper = (major, minor) == (9, 0) && env!("INNERLOOP_HOPPER") == "1";
            let model = context.name()?;
            let name = format!("cuda:{ordinal} ({model}, compute capability {major}.{minor})");
            Ok((name, model, hopper.then_some(count as u32)))
        };
        let (name, model, warpgroups) =
            described().map_err(|e| refused("it does not answer", e, "a GPU that is free"))?;
        let expected = "a GPU of compute capability 8.0 or above, a driver as new as the CUDA toolkit the crate was built \
                        with, and INNERLOOP_CUDA_ARCHS unset (or naming this GPU) when it was built";
        let unloaded =
            |e| Error::invalid(name.as_str(), format!("the kernels cannot be loaded: {}", words(e)), expected);
        // SAFETY: the image is a whole fatbin, aligned, and lives as long as the program.
        let module = unsafe { result::module::load_data(FATBIN.0.as_ptr().cast()) }.map_err(unloaded)?;
        let most = CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared = context.attribute(most).map_err(|e| refused("it does not answer", e, "a GPU that is free"))?;
        let (context_of, name_of) = (context.clone(), name.clone());
        let functions = Vec::new();
        let mut loaded = Module { context: context_of, module, functions, name: name_of, model, shared, warpgroups };
        for kernel in Kernel::ALL {
            let symbol = CString::new(kernel.name()).unwrap_or_default();
            // SAFETY: the module was just loaded.
            let function = unsafe { result::module::get_function(module, symbol) }.map_err(unloaded)?;
            let most = match (warpgroups, hopper::block_of(*kernel)) {
                (Some(_), Some((_, shared))) => Some(shared as i32),
                _ => finish::ends(*kernel).then_some(finish::STAGED as i32),
            };
            if let Some(shared) = most {
                let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function is the module's.
                unsafe { result::function::set_function_attribute(function, limit, shared) }.map_err(unloaded)?;
            }
            loaded.functions.push(function);
        }
        // What they declare themselves counts too. As much as there is, of what caches share, so that as many blocks as can be are
        // there at once.
        let narrow = [Kernel::NarrowMany, Kernel::NarrowFew, Kernel::NarrowMma];
        for kernel in [Kernel::Resident, Kernel::Chain].into_iter().chain(narrow) {
            for (attribute, value) in [
                (CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared - RESERVED),
                (CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),
            ] {
                let whole = loaded.functions[kernel as usize];
                // SAFETY: a function of the module that was just loaded.
                unsafe { result::function::set_function_attribute(whole, attribute, value) }.map_err(unloaded)?;
            }
        }
        let stream = || context.new_stream().map_err(|e| refused("no stream", e, "a GPU that is free"));
        Ok(Self { stream: stream()?, copies: stream()?, module: Arc::new(loaded) })
    }
}

impl GpuDriver {
    /// Describes numbers from `offset` on: their sides, bytes between all but the first dimension's, and a tile's sides.
    fn encode(
        &self,
        memory: &CudaSlice<f32>,
        offset: usize,
        precision: MatrixPrecision,
        (sides, distances, tile): (&[u64], &[u64], &[u32]),
    ) -> Result<TensorMap, String> {
        use sys::CUtensorMapDataType as Type;
        let numbers = match precision {
            MatrixPrecision::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            MatrixPrecision::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        };
        assert!(sides.len() <= 3 && distances.len() + 1 == sides.len() && tile.len() == sides.len());
        self.module.context.bind_to_thread().map_err(words)?;
        let (arena, _guard) = memory.device_ptr(&self.stream);
        let address = arena + (offset * size_of::<f32>()) as u64;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays have as many numbers as the map has dimensions, the distances one fewer.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                numbers,
                sides.len() as u32,
                address as *mut c_void,
                sides.as_ptr(),
                distances.as_ptr(),
                tile.as_ptr(),
                [1; 3].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(words)?;
        Ok(TensorMap(map.opaque))
    }
}

/// The driver's name for an error, and what it says of it.
pub(super) fn words(error: DriverError) -> String {
    let text =
        |s: Result<&std::ffi::CStr, DriverError>| s.map_or("unknown".into(), |s| s.to_string_lossy().into_owned());
    format!("{} ({})", text(error.error_name()), text(error.error_string()))
}

impl Driver for GpuDriver {
    type Memory = CudaSlice<f32>;
    type Graph = GpuGraph;

    fn name(&self) -> String {
        self.module.name.clone()
    }

    fn model(&self) -> String {
        self.module.model.clone()
    }

    fn allocate(&self, elements: usize) -> Result<CudaSlice<f32>> {
        self.stream.alloc_zeros(elements).map_err(|e| {
            let gigabytes = elements as f64 * size_of::<f32>() as f64 / 1e9;
            let problem = format!("{gigabytes:.1} GB cannot be had on {}: {}", self.module.name, words(e));
            Error::invalid("memory", problem, "a smaller meta-batch or network")
        })
    }

    fn free_bytes(&self) -> Option<u64> {
        // What was given back is free once the stream has come by.
        self.stream.synchronize().ok()?;
        self.module.context.mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn write(&self, memory: &mut CudaSlice<f32>, offset: usize, from: &[f32]) -> Result<(), String> {
        if from.is_empty() {
            return Ok(());
        }
        let mut to = memory.slice_mut(offset..offset + from.len());
        self.stream.memcpy_htod(from, &mut to).map_err(words)
    }

    fn read(&self, memory: &CudaSlice<f32>, offset: usize, to: &mut [f32]) -> Result<(), String> {
        if to.is_empty() {
            return Ok(());
        }
        self.stream.memcpy_dtoh(&memory.slice(offset..offset + to.len()), to).map_err(words)?;
        self.stream.synchronize().map_err(words)
    }

    fn shared_bytes(&self) -> usize {
        (self.module.shared - RESERVED).max(0) as usize
    }

    fn warpgroups(&self) -> Option<u32> {
        self.module.warpgroups
    }

    fn tensor_map(&self, memory: &CudaSlice<f32>, matrix: PackedMatrix) -> Result<TensorMap, String> {
        let PackedMatrix { offset, rows, width, pitch, bf16, tall } = matrix;
        let sides = ([width as u64, rows as u64], [pitch as u64 * 2], [PANEL, tall]);
        let precision = if bf16 { MatrixPrecision::Bf16 } else { MatrixPrecision::F16 };
        self.encode(memory, offset, precision, (&sides.0, &sides.1, &sides.2))
    }

    fn written_map(&self, memory: &CudaSlice<f32>, matrices: WrittenMatrices) -> Result<TensorMap, String> {
        let WrittenMatrices { offset, count, rows, width, precision } = matrices;
        let [bytes, pitch] = matrices.bytes();
        let sides = [width as u64, rows as u64, count as u64];
        let distances = [pitch as u64, (pitch * rows) as u64];
        let tile = [2 * PANEL / bytes as u32, WRITTEN, 1];
        self.encode(memory, offset, precision, (&sides, &distances, &tile))
    }

    unsafe fn launch(
        &self,
        memory: &CudaSlice<f32>,
        kernel: Kernel,
        grid: [u32; 3],
        shared: u32,
        arguments: *const c_void,
    ) -> Result<(), String> {
        let function = self.module.functions[kernel as usize];
        let (mut arena, _guard) = memory.device_ptr(&self.stream);
        let mut parameters = [std::ptr::from_mut(&mut arena).cast(), arguments.cast_mut()];
        let (threads, shared) = block_of(kernel, shared);
        let (grid, block) = ((grid[0], grid[1], grid[2]), (threads, 1, 1));
        self.module.context.bind_to_thread().map_err(words)?;
        // SAFETY: the caller's promise; the driver copies the parameters before it returns.
        unsafe { result::launch_kernel(function, grid, block, shared, self.stream.cu_stream(), &mut parameters) }
            .map_err(words)
    }

    unsafe fn graph(&self, memory: &CudaSlice<f32>, steps: &[GraphStep<'_>]) -> Result<GpuGraph, String> {
        // SAFETY: the caller's promise.
        unsafe { self.make_graph(memory, steps) }.map_err(words)
    }

    unsafe fn change(
        &self,
        memory: &CudaSlice<f32>,
        graph: &mut GpuGraph,
        index: usize,
        step: &GraphStep<'_>,
    ) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe { self.change_graph(memory, graph, index, step) }.map_err(words)
    }

    fn staging<'g>(&self, graph: &'g mut GpuGraph) -> Result<&'g mut [f32], String> {
        graph.staging()
    }

    unsafe fn replay(&self, _: &CudaSlice<f32>, graph: &mut GpuGraph) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe { self.replay_graph(graph) }.map_err(words)
    }

    fn results<'g>(&self, graph: &'g mut GpuGraph) -> Result<&'g [f32], String> {
        graph.results()
    }
}
