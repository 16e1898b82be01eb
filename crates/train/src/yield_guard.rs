//! One pass through the layers, forward or backward, with a yield point before each layer.

use kernels::Device;
use model::YieldPoint;

use crate::error::TrainError;

/// A pass through the layers of a model. Dropping it releases the device.
pub(crate) struct YieldGuard<'y> {
    yield_point: Option<&'y dyn YieldPoint>,
    device: &'y Device,
}

impl<'y> YieldGuard<'y> {
    /// Without a yield point, the pass never waits.
    pub fn new(yield_point: Option<&'y dyn YieldPoint>, device: &'y Device) -> YieldGuard<'y> {
        YieldGuard {
            yield_point,
            device,
        }
    }

    /// Blocks until the device has computed the last layer and the next one may run.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] if the run must stop.
    pub fn wait(&self) -> Result<(), TrainError> {
        let Some(yield_point) = self.yield_point else {
            return Ok(());
        };
        self.device.wait();
        if yield_point.wait() {
            Ok(())
        } else {
            Err(TrainError::Stopped)
        }
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
