//! Declarations of the HIP runtime and of the dynamic loader, by hand; nothing is called here.
//!
//! Only calls whose parameters are the same in HIP 5, 6 and 7: no structs, no enumeration that was renumbered.
//! Handles are opaque pointers of the host; `device` pointers are addresses on the card.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A handle of the runtime.
pub type Handle = *mut c_void;

/// `hipMemcpyHostToDevice` and `hipMemcpyDeviceToHost` of hipMemcpyKind.
pub const HOST_TO_DEVICE: c_int = 1;
/// See [`HOST_TO_DEVICE`].
pub const DEVICE_TO_HOST: c_int = 2;
/// `hipSuccess`.
pub const SUCCESS: c_int = 0;
/// `hipErrorNotReady`.
pub const NOT_READY: c_int = 600;
/// `hipStreamNonBlocking`.
pub const NON_BLOCKING: c_uint = 1;
/// `hipStreamCaptureModeThreadLocal`.
pub const CAPTURE_THREAD_LOCAL: c_int = 1;
/// `HIP_LAUNCH_PARAM_BUFFER_POINTER`, `_SIZE` and `_END`: tags in a launch's `extra`.
pub const PARAM_POINTER: usize = 1;
/// See [`PARAM_POINTER`].
pub const PARAM_SIZE: usize = 2;
/// See [`PARAM_POINTER`].
pub const PARAM_END: usize = 3;
/// `RTLD_NOW`.
pub const NOW: c_int = 2;

unsafe extern "C" {
    /// Loads a library; null where it cannot.
    pub fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    /// A symbol's address; null where there is none.
    pub fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    /// The loader's last words, or null.
    pub fn dlerror() -> *const c_char;
}

macro_rules! functions {
    (required { $(fn $name:ident($($type:ty),*);)* } optional { $(fn $other:ident($($other_type:ty),*);)* }) => {
        /// The runtime's functions, by their own names.
        #[allow(non_snake_case)]
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($type),*) -> c_int,)*
            $(pub $other: Option<unsafe extern "C" fn($($other_type),*) -> c_int>,)*
            pub hipGetErrorName: unsafe extern "C" fn(c_int) -> *const c_char,
        }

        impl Functions {
            /// Looks every function up; the error is the first one missing.
            ///
            /// # Safety
            /// `find` answers null or the address of the runtime's function of that name.
            pub unsafe fn load(find: impl Fn(&'static str) -> *mut c_void) -> Result<Self, &'static str> {
                // SAFETY: the caller vouches for the addresses, and the types are the runtime's.
                unsafe {
                    Ok(Self {
                        $($name: {
                            let address = find(stringify!($name));
                            if address.is_null() {
                                return Err(stringify!($name));
                            }
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) -> c_int>(address)
                        },)*
                        $($other: {
                            let address = find(stringify!($other));
                            (!address.is_null()).then(|| {
                                std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($other_type),*) -> c_int>(address)
                            })
                        },)*
                        hipGetErrorName: {
                            let address = find("hipGetErrorName");
                            if address.is_null() {
                                return Err("hipGetErrorName");
                            }
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int) -> *const c_char>(address)
                        },
                    })
                }
            }
        }
    };
}

functions! {
    required {
        fn hipInit(c_uint);
        fn hipRuntimeGetVersion(*mut c_int);
        fn hipGetDeviceCount(*mut c_int);
        fn hipSetDevice(c_int);
        // "0000:03:00.0" and a NUL into a host buffer of the length, for the device.
        fn hipDeviceGetPCIBusId(*mut c_char, c_int, c_int);
        fn hipMemGetInfo(*mut usize, *mut usize);
        // Device address out, bytes.
        fn hipMalloc(*mut *mut c_void, usize);
        fn hipFree(*mut c_void);
        // Pinned host address out, bytes, flags.
        fn hipHostMalloc(*mut *mut c_void, usize, c_uint);
        fn hipHostFree(*mut c_void);
        // To, from, bytes, kind, stream.
        fn hipMemcpyAsync(*mut c_void, *const c_void, usize, c_int, Handle);
        // Device address, byte, bytes, stream.
        fn hipMemsetAsync(*mut c_void, c_int, usize, Handle);
        fn hipStreamCreateWithFlags(*mut Handle, c_uint);
        fn hipStreamDestroy(Handle);
        fn hipEventCreateWithFlags(*mut Handle, c_uint);
        fn hipEventDestroy(Handle);
        fn hipEventRecord(Handle, Handle);
        fn hipEventQuery(Handle);
        fn hipEventElapsedTime(*mut f32, Handle, Handle);
        // Module out, code object in host memory.
        fn hipModuleLoadData(*mut Handle, *const c_void);
        fn hipModuleUnload(Handle);
        fn hipModuleGetFunction(*mut Handle, Handle, *const c_char);
        // Function, grid, workgroup, dynamic LDS, stream, kernel parameters, extra.
        fn hipModuleLaunchKernel(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        );
    }
    optional {
        // A name and a NUL into a host buffer of the length, for the device.
        fn hipDeviceGetName(*mut c_char, c_int, c_int);
        fn hipStreamBeginCapture(Handle, c_int);
        fn hipStreamEndCapture(Handle, *mut Handle);
        fn hipGraphInstantiateWithFlags(*mut Handle, Handle, u64);
        fn hipGraphLaunch(Handle, Handle);
        fn hipGraphDestroy(Handle);
        fn hipGraphExecDestroy(Handle);
    }
}
