//! Where a background client of the compute device gives way: before each layer of a forward or backward pass.
//!
//! Does not know who else computes, or why a client has to wait. A yield point changes when a computation runs and whether it
//! stops, never its result.

/// Decides when a background client, such as a training run, may compute. Called on the client's own thread.
pub trait YieldPoint: Send + Sync {
    /// Blocks until the client may run its next layer, chunk of the head, or engine step. Returns false if the client must
    /// stop; what it has not finished is then discarded.
    fn wait(&self) -> bool;

    /// As [`YieldPoint::wait`], between two parts of a long layer.
    fn pause(&self) -> bool {
        self.wait()
    }

    /// Releases the device after a pass through the layers, whether the pass was completed or not.
    fn release(&self);
}
