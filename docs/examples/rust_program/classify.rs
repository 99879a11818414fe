//! Reads images of 28 x 28 floats from standard input, runs them in threads, and prints each one's digit.
//!
//!     export PKG_CONFIG_PATH=$(python -m mnist pkgconfig)
//!     rustc -O classify.rs -L $(pkg-config --variable=libdir mnist) \
//!         -C link-arg=$(pkg-config --variable=rpath mnist)

use std::ffi::{c_char, c_int, c_void, CStr};
use std::io::Read;
use std::ptr;

mod ffi {
    use super::{c_char, c_int, c_void};

    /// `mnist_model`, which only pointers lead to.
    #[repr(C)]
    pub struct Model {
        _private: [u8; 0],
    }

    #[link(name = "mnist")]
    extern "C" {
        pub fn mnist_abi_version() -> i32;
        pub fn mnist_last_error() -> *const c_char;
        pub fn mnist_open(weights_file: *const c_char, threads: i32, model: *mut *mut Model) -> c_int;
        pub fn mnist_destroy(model: *mut Model);
        pub fn mnist_run(
            model: *mut Model,
            function: i32,
            state: *mut c_void,
            inputs: *const *const c_void,
            outputs: *const *mut c_void,
            symbols: *const i64,
        ) -> c_int;
    }
}

const ABI_VERSION: i32 = 6; // MNIST_ABI_VERSION of mnist.h
const FORWARD: i32 = 0;
const PIXELS: usize = 28 * 28;

/// A loaded model. It may be used from several threads at once.
struct Model(*mut ffi::Model);

unsafe impl Send for Model {}
unsafe impl Sync for Model {}

fn last_error() -> String {
    unsafe { CStr::from_ptr(ffi::mnist_last_error()) }.to_string_lossy().into_owned()
}

impl Model {
    /// The model with the weights of its package.
    fn open(threads: i32) -> Result<Model, String> {
        if unsafe { ffi::mnist_abi_version() } != ABI_VERSION {
            return Err("libmnist.so is of another version".to_string());
        }
        let mut model = ptr::null_mut();
        match unsafe { ffi::mnist_open(ptr::null(), threads, &mut model) } {
            0 => Ok(Model(model)),
            _ => Err(last_error()),
        }
    }

    fn probabilities(&self, image: &[f32; PIXELS]) -> Result<[f32; 10], String> {
        let mut result = [0f32; 10];
        let inputs = [image.as_ptr() as *const c_void];
        let outputs = [result.as_mut_ptr() as *mut c_void];
        let code = unsafe {
            ffi::mnist_run(self.0, FORWARD, ptr::null_mut(), inputs.as_ptr(), outputs.as_ptr(), ptr::null())
        };
        if code == 0 {
            Ok(result)
        } else {
            Err(last_error())
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        unsafe { ffi::mnist_destroy(self.0) }
    }
}

fn main() -> Result<(), String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let images: Vec<[f32; PIXELS]> = bytes
        .chunks_exact(4 * PIXELS)
        .map(|chunk| {
            let mut image = [0f32; PIXELS];
            for (pixel, four) in image.iter_mut().zip(chunk.chunks_exact(4)) {
                *pixel = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            }
            image
        })
        .collect();
    let model = &Model::open(1)?;
    let results: Vec<Result<[f32; 10], String>> = std::thread::scope(|scope| {
        let running: Vec<_> = images.iter().map(|image| scope.spawn(move || model.probabilities(image))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for result in results {
        let text: Vec<String> = result?.iter().map(|value| value.to_string()).collect();
        println!("{}", text.join(" "));
    }
    Ok(())
}
