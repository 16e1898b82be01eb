//! One pass through the layers, forward or backward, with a yield point before each layer.

use model::YieldPoint;

use crate::error::TrainError;

/// A pass through the layers of a model. Dropping it releases the device.
pub(crate) struct YieldGuard<'y>(Option<&'y dyn YieldPoint>);

impl<'y> YieldGuard<'y> {
    /// Without a yield point, the pass never waits.
    pub fn new(yield_point: Option<&'y dyn YieldPoint>) -> YieldGuard<'y> {
        YieldGuard(yield_point)
    }

    /// Blocks until the next layer may run.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] if the run must stop.
    pub fn wait(&self) -> Result<(), TrainError> {
        match self.0 {
            Some(yield_point) if !yield_point.wait() => Err(TrainError::Stopped),
            _ => Ok(()),
        }
    }
}

impl Drop for YieldGuard<'_> {
    fn drop(&mut self) {
        if let Some(yield_point) = self.0 {
            yield_point.release();
        }
    }
}
