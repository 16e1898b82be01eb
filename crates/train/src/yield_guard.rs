//! One pass through the layers, forward or backward, with a yield point before each layer and within long ones.

use std::rc::Rc;
use std::sync::Arc;

use kernels::Device;
use model::YieldPoint;

use crate::error::TrainError;

/// A pass through the layers of a model. Dropping it releases the device.
pub(crate) struct YieldGuard<'y> {
    yield_point: Option<&'y Arc<dyn YieldPoint>>,
    device: &'y Device,
}

impl<'y> YieldGuard<'y> {
    /// Without a yield point, the pass never waits.
    pub fn new(yield_point: Option<&'y Arc<dyn YieldPoint>>, device: &'y Device) -> YieldGuard<'y> {
        YieldGuard {
            yield_point,
            device,
        }
    }

    /// Blocks until the device has computed the last layer and the next one may run, and runs it with `layer`.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] if the run must stop, before the layer or within it.
    pub fn layer<R>(&self, layer: impl FnOnce() -> R) -> Result<R, TrainError> {
        let Some(yield_point) = self.yield_point else {
            return Ok(layer());
        };
        self.device.wait();
        if !yield_point.wait() {
            return Err(TrainError::Stopped);
        }
        let within = Arc::clone(yield_point);
        let ran = self.device.pausing(Rc::new(move || within.pause()), layer);
        ran.ok_or(TrainError::Stopped)
    }
}

impl Drop for YieldGuard<'_> {
    fn drop(&mut self) {
        if let Some(yield_point) = self.yield_point {
            self.device.wait();
            yield_point.release();
        }
    }
}
