//! The graphics card that tests run on.

use kernels::{Device, DeviceChoice, GpuApi};

/// `vulkan:0`, for which Mesa's llvmpipe is enough. Without a Vulkan driver: none, and the reason is printed.
///
/// # Panics
/// There is no Vulkan driver, and `LORY_TEST_GPU=required`.
pub fn vulkan() -> Option<DeviceChoice> {
    let (api, index) = (GpuApi::Vulkan, 0);
    match Device::find_gpu(api, index) {
        Ok(_) => Some(DeviceChoice::Gpu { api, index }),
        Err(error) => {
            let required = std::env::var("LORY_TEST_GPU").is_ok_and(|value| value == "required");
            assert!(!required, "LORY_TEST_GPU=required: {error}");
            println!("skipped: {error}");
            None
        }
    }
}
