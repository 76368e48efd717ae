//! The HIP runtime, loaded when it is asked for: a machine without ROCm starts the same program.

use super::error::HipError;
use super::ffi::{self, Functions};
use std::ffi::{CStr, CString, c_int};

/// Names the dynamic loader is asked for, in order, then ROCm's usual folder.
const NAMES: [&str; 5] = [
    "libamdhip64.so.7",
    "libamdhip64.so.6",
    "libamdhip64.so.5",
    "libamdhip64.so",
    "/opt/rocm/lib/libamdhip64.so",
];

/// The loaded runtime. It stays loaded for the life of the process: it has threads of its own.
pub struct Library {
    functions: Functions,
    name: String,
}

impl Library {
    /// Loads the runtime; `path` names one instead of the usual places.
    ///
    /// # Errors
    /// None is found, or one lacks a function.
    pub fn open(path: Option<&str>) -> Result<Self, HipError> {
        let mut reasons = Vec::new();
        for name in path.map_or(NAMES.to_vec(), |path| vec![path]) {
            let Ok(text) = CString::new(name) else { continue };
            // SAFETY: the name ends in NUL. Loading a library runs its initialisers, which is what is wanted.
            let library = unsafe { ffi::dlopen(text.as_ptr(), ffi::NOW) };
            if library.is_null() {
                reasons.push(last_words());
                continue;
            }
            let find = |symbol: &'static str| match CString::new(symbol) {
                // SAFETY: the library is loaded, and the symbol ends in NUL.
                Ok(symbol) => unsafe { ffi::dlsym(library, symbol.as_ptr()) },
                Err(_) => std::ptr::null_mut(),
            };
            // SAFETY: the addresses are those that the runtime gives its functions, or null.
            let functions = unsafe { Functions::load(find) };
            let functions =
                functions.map_err(|symbol| HipError::Symbol { symbol, library: name.to_owned() })?;
            return Ok(Self { functions, name: name.to_owned() });
        }
        Err(HipError::Library { reason: reasons.join("; ") })
    }

    /// The functions.
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// The name it was loaded by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A code that a call gave back, as a result.
    ///
    /// # Errors
    /// It is not success.
    pub fn check(&self, call: &'static str, code: c_int) -> Result<(), HipError> {
        if code == ffi::SUCCESS {
            return Ok(());
        }
        // SAFETY: the runtime answers a static string, or null for a code that it does not know.
        let name = unsafe {
            let text = (self.functions.hipGetErrorName)(code);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(HipError::Call { call, code, name: name.into_owned() })
    }
}

fn last_words() -> String {
    // SAFETY: dlerror answers a string that lives until the thread's next call of the loader, or null.
    unsafe {
        let text = ffi::dlerror();
        if text.is_null() {
            "unknown".to_owned()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }
}
