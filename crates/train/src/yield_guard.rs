//! One pass through the layers, forward or backward, with a yield point before each layer and within long ones.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::Device;
use model::YieldPoint;

use crate::error::TrainError;

/// A layer that probably takes longer gives way within, too. Shorter ones do not, because that costs a few percent of their time.
const LONG_LAYER: Duration = Duration::from_millis(50);

/// The time of a layer for each of its rows, in seconds, from the last one that was run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LayerPace(Option<f64>);

impl LayerPace {
    /// Whether a layer of `rows` rows is probably long. The first one may be.
    fn is_long(self, rows: usize) -> bool {
        let LayerPace(seconds) = self;
        seconds.is_none_or(|seconds| seconds * rows as f64 > LONG_LAYER.as_secs_f64())
    }
}

/// A pass through the layers of a model. Dropping it releases the device.
pub(crate) struct YieldGuard<'y> {
    yield_point: Option<&'y Arc<dyn YieldPoint>>,
    device: &'y Device,
    pace: Cell<LayerPace>,
}

impl<'y> YieldGuard<'y> {
    /// Without a yield point, the pass never waits. `pace` is that of the last pass.
    pub fn new(
        yield_point: Option<&'y Arc<dyn YieldPoint>>,
        device: &'y Device,
        pace: LayerPace,
    ) -> YieldGuard<'y> {
        YieldGuard {
            yield_point,
            device,
            pace: Cell::new(pace),
        }
    }

    /// The pace of the last layer.
    pub fn pace(&self) -> LayerPace {
        self.pace.get()
    }

    /// Blocks until the device has computed the last layer and the next one, of `rows` rows, may run, and runs it with `layer`.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] if the run must stop, before the layer or within it.
    pub fn layer<R>(&self, rows: usize, layer: impl FnOnce() -> R) -> Result<R, TrainError> {
        let began = Instant::now();
        let result = self.part(self.pace.get().is_long(rows), layer)?;
        let seconds = began.elapsed().as_secs_f64();
        self.pace.set(LayerPace(Some(seconds / rows.max(1) as f64)));
        Ok(result)
    }

    /// As [`YieldGuard::layer`], for other work of a pass: it gives way within if it `is_long`.
    ///
    /// # Errors
    /// As [`YieldGuard::layer`].
    pub fn part<R>(&self, is_long: bool, work: impl FnOnce() -> R) -> Result<R, TrainError> {
        let Some(yield_point) = self.yield_point else {
            return Ok(work());
        };
        self.device.wait();
        if !yield_point.wait() {
            return Err(TrainError::Stopped);
        }
        if !is_long {
            return Ok(work());
        }
        let within = Arc::clone(yield_point);
        let ran = self.device.pausing(Rc::new(move || within.pause()), work);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_is_long_by_the_pace_of_the_last_one() {
        let pace = LayerPace(Some(1e-4));
        assert!(!pace.is_long(500) && pace.is_long(501));
        assert!(LayerPace::default().is_long(1));
    }
}
