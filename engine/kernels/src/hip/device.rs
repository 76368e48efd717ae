//! One card: its context, its one stream, its memory and its kernels.
//!
//! All calls come from one thread at a time. Every code that the runtime gives back is checked where it appears.
//! `transfer.rs` moves bytes and waits, `graph.rs` captures launches.

use super::error::{HipError, OUT_OF_MEMORY};
use super::ffi::{self, Handle};
use super::library::Library;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::time::Duration;

/// Code objects of this build: gfx target, kernel file, bytes.
pub(crate) static OBJECTS: &[(&str, &str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/objects.rs"));

/// Bytes of one of the two pinned buffers that uploads pass through.
pub(super) const STAGING_BYTES: usize = 16 << 20;

/// An address on the card. Arithmetic on it is checked by whoever made the allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Address(pub(crate) u64);

impl Address {
    /// What kernels take for "none".
    pub const NULL: Self = Self(0);

    /// The address so many bytes further on.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    pub(super) fn pointer(self) -> *mut c_void {
        self.0 as *mut c_void
    }
}

/// A kernel of a loaded module.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    function: Handle,
    threads: u32,
}

// SAFETY: a function handle belongs to the process and is only passed back to the runtime.
unsafe impl Send for Kernel {}

/// Pinned host memory.
pub struct Pinned {
    pub(super) at: *mut u8,
    pub(super) bytes: usize,
}

// SAFETY: pinned memory is plain memory that this value alone refers to; `Device` frees it at its end.
unsafe impl Send for Pinned {}

impl Pinned {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation has this many bytes, was zeroed when it was made, and is freed with the device only.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the exclusive borrow keeps other views away.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

/// A card with kernels loaded.
pub struct Device {
    pub(super) library: Library,
    target: &'static str,
    pub(super) stream: Handle,
    pub(super) events: [Handle; 3],
    modules: HashMap<&'static str, Handle>,
    allocations: Vec<Handle>,
    pinned: Vec<*mut u8>,
    pub(super) staging: [Pinned; 2],
    pub(super) graphs: bool,
    pub(super) timeout: Duration,
}

// SAFETY: the handles belong to the process, not to a thread; `bind` makes the device current on the calling thread
// before each use, and `&mut self` keeps calls one at a time.
unsafe impl Send for Device {}

impl Device {
    /// Initialises the runtime and the first card it shows, and loads the kernels of the target.
    ///
    /// # Errors
    /// The runtime refuses, or the build has no kernels for the target.
    pub fn open(library: Library, target: &str, timeout: Duration) -> Result<Self, HipError> {
        let target = known_target(target)?;
        let functions = library.functions();
        let mut count = 0;
        let mut stream = std::ptr::null_mut();
        let mut events = [std::ptr::null_mut(); 3];
        let mut staging = [(); 2].map(|()| Pinned { at: std::ptr::null_mut(), bytes: STAGING_BYTES });
        let mut pinned = Vec::new();
        // SAFETY: every pointer is to a local of the type that the function writes.
        unsafe {
            library.check("hipInit", (functions.hipInit)(0))?;
            library.check("hipGetDeviceCount", (functions.hipGetDeviceCount)(&raw mut count))?;
            if count < 1 {
                return Err(HipError::NoCard { reason: "the HIP runtime shows none".to_owned() });
            }
            library.check("hipSetDevice", (functions.hipSetDevice)(0))?;
            let code = (functions.hipStreamCreateWithFlags)(&raw mut stream, ffi::NON_BLOCKING);
            library.check("hipStreamCreateWithFlags", code)?;
            for event in &mut events {
                library.check("hipEventCreateWithFlags", (functions.hipEventCreateWithFlags)(event, 0))?;
            }
            for buffer in &mut staging {
                *buffer = pin(&library, STAGING_BYTES)?;
                pinned.push(buffer.at);
            }
        }
        let mut modules = HashMap::new();
        for (_, name, object) in OBJECTS.iter().filter(|(of, ..)| *of == target) {
            let mut module = std::ptr::null_mut();
            // SAFETY: the object is a whole ELF image in static memory.
            let code = unsafe { (functions.hipModuleLoadData)(&raw mut module, object.as_ptr().cast()) };
            library.check("hipModuleLoadData", code)?;
            modules.insert(*name, module);
        }
        let graphs = functions.hipStreamBeginCapture.is_some()
            && functions.hipStreamEndCapture.is_some()
            && functions.hipGraphInstantiateWithFlags.is_some()
            && functions.hipGraphLaunch.is_some();
        let allocations = Vec::new();
        Ok(Self { library, target, stream, events, modules, allocations, pinned, staging, graphs, timeout })
    }

    /// The card's PCI address as the runtime tells it.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn pci_address(&self) -> Result<String, HipError> {
        let mut text = [0_u8; 32];
        // SAFETY: the buffer has the length that is passed.
        let code = unsafe {
            (self.library.functions().hipDeviceGetPCIBusId)(text.as_mut_ptr().cast::<c_char>(), 31, 0)
        };
        self.library.check("hipDeviceGetPCIBusId", code)?;
        let length = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..length]).to_ascii_lowercase())
    }

    /// Major, minor and patch of the runtime.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn runtime_version(&self) -> Result<(i32, i32, i32), HipError> {
        let mut version = 0;
        // SAFETY: a pointer to a local of the right type.
        let code = unsafe { (self.library.functions().hipRuntimeGetVersion)(&raw mut version) };
        self.library.check("hipRuntimeGetVersion", code)?;
        Ok((version / 10_000_000, version / 100_000 % 100, version % 100_000))
    }

    /// Free and total bytes of the card's memory.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn memory(&self) -> Result<(u64, u64), HipError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: pointers to locals of the right type.
        let code = unsafe { (self.library.functions().hipMemGetInfo)(&raw mut free, &raw mut total) };
        self.library.check("hipMemGetInfo", code)?;
        Ok((free as u64, total as u64))
    }

    /// Makes the card the calling thread's; the worker thread is another than the one that loads.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn bind(&self) -> Result<(), HipError> {
        // SAFETY: a plain number.
        self.library.check("hipSetDevice", unsafe { (self.library.functions().hipSetDevice)(0) })
    }

    /// Memory on the card; it lives as long as the device, or until it is freed.
    ///
    /// # Errors
    /// There is not so much.
    pub fn allocate(&mut self, what: &'static str, bytes: u64) -> Result<Address, HipError> {
        let mut at = std::ptr::null_mut();
        let wanted = usize::try_from(bytes).unwrap_or(usize::MAX);
        // SAFETY: a pointer to a local of the right type.
        let code = unsafe { (self.library.functions().hipMalloc)(&raw mut at, wanted) };
        if code == OUT_OF_MEMORY {
            let available = self.memory().map_or(0, |(free, _)| free);
            return Err(HipError::OutOfMemory { what, needed: bytes, available });
        }
        self.library.check("hipMalloc", code)?;
        self.allocations.push(at);
        Ok(Address(at as u64))
    }

    /// Gives memory back before the device's end; nothing is done where it was not allocated here.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn free(&mut self, at: Address) -> Result<(), HipError> {
        let Some(index) = self.allocations.iter().position(|held| *held == at.pointer()) else {
            return Ok(());
        };
        let held = self.allocations.swap_remove(index);
        // SAFETY: the runtime gave this address, and it is forgotten with this call.
        self.library.check("hipFree", unsafe { (self.library.functions().hipFree)(held) })
    }

    /// The card's name as the runtime tells it; none where the runtime has no such call.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn name(&self) -> Result<Option<String>, HipError> {
        let Some(get) = self.library.functions().hipDeviceGetName else { return Ok(None) };
        let mut text = [0_u8; 128];
        // SAFETY: the buffer is longer than the length that is passed.
        self.library.check("hipDeviceGetName", unsafe { get(text.as_mut_ptr().cast::<c_char>(), 127, 0) })?;
        let length = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        Ok(Some(String::from_utf8_lossy(&text[..length]).into_owned()))
    }

    /// Pinned host memory; it lives as long as the device.
    ///
    /// # Errors
    /// There is not so much.
    pub fn allocate_pinned(&mut self, bytes: usize) -> Result<Pinned, HipError> {
        let pinned = pin(&self.library, bytes.max(64))?;
        self.pinned.push(pinned.at);
        Ok(pinned)
    }

    /// A kernel by its file and name.
    ///
    /// # Errors
    /// There is none.
    pub fn kernel(&self, module: &'static str, name: &str, threads: u32) -> Result<Kernel, HipError> {
        let missing =
            || HipError::Symbol { symbol: module, library: format!("the kernels of {}", self.target) };
        let module = *self.modules.get(module).ok_or_else(missing)?;
        let name = CString::new(name).map_err(|_| missing())?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, and the name ends in NUL.
        let code = unsafe {
            (self.library.functions().hipModuleGetFunction)(&raw mut function, module, name.as_ptr())
        };
        self.library.check("hipModuleGetFunction", code)?;
        Ok(Kernel { function, threads })
    }

    /// Starts a kernel on a grid of workgroups with its one struct of arguments.
    ///
    /// # Errors
    /// The runtime refuses.
    ///
    /// # Safety
    /// `arguments` is the struct that the kernel takes, field by field, and every address in it is memory of this
    /// device that is as large as the kernel's shapes say.
    pub unsafe fn launch<A>(&self, kernel: Kernel, grid: [u32; 3], arguments: &A) -> Result<(), HipError> {
        if grid.contains(&0) {
            return Ok(());
        }
        let mut bytes = size_of::<A>();
        let mut extra = [
            ffi::PARAM_POINTER as *mut c_void,
            std::ptr::from_ref(arguments).cast_mut().cast(),
            ffi::PARAM_SIZE as *mut c_void,
            (&raw mut bytes).cast(),
            ffi::PARAM_END as *mut c_void,
        ];
        // SAFETY: `extra` is the form that the runtime documents; it copies the arguments before it returns.
        let code = unsafe {
            (self.library.functions().hipModuleLaunchKernel)(
                kernel.function,
                grid[0],
                grid[1],
                grid[2],
                kernel.threads,
                1,
                1,
                0,
                self.stream,
                std::ptr::null_mut(),
                extra.as_mut_ptr(),
            )
        };
        self.library.check("hipModuleLaunchKernel", code)
    }
}

/// The gfx target, if this build has kernels for it.
///
/// # Errors
/// It has not.
pub(super) fn known_target(target: &str) -> Result<&'static str, HipError> {
    let mut targets: Vec<&'static str> = OBJECTS.iter().map(|(target, ..)| *target).collect();
    targets.sort_unstable();
    targets.dedup();
    let known = targets.iter().copied().find(|known| *known == target);
    known.ok_or_else(|| HipError::UnknownTarget { found: target.to_owned(), built: targets.join(", ") })
}

/// Zeroed pinned memory.
fn pin(library: &Library, bytes: usize) -> Result<Pinned, HipError> {
    let mut at = std::ptr::null_mut();
    // SAFETY: a pointer to a local of the right type.
    let code = unsafe { (library.functions().hipHostMalloc)(&raw mut at, bytes, 0) };
    library.check("hipHostMalloc", code)?;
    // SAFETY: the allocation has this many bytes.
    unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
    Ok(Pinned { at: at.cast(), bytes })
}

impl Drop for Device {
    fn drop(&mut self) {
        let functions = self.library.functions();
        // SAFETY: each handle was made by this runtime and is freed once. Codes are of no use any more.
        unsafe {
            (functions.hipSetDevice)(0);
            for module in self.modules.values() {
                (functions.hipModuleUnload)(*module);
            }
            for event in self.events {
                (functions.hipEventDestroy)(event);
            }
            (functions.hipStreamDestroy)(self.stream);
            for at in &self.allocations {
                (functions.hipFree)(*at);
            }
            for at in &self.pinned {
                (functions.hipHostFree)(at.cast());
            }
        }
    }
}
