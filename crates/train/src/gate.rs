//! What a run passes between two layers: whoever lends it the machine can make it wait there, or stop it.
//!
//! Knows nobody who asks for that. What a gate does changes how long a run takes and where it stops, never a number of it.

use crate::error::TrainError;

/// Stands between two layers of every forward and backward. Called on the thread that trains.
pub trait Gate: Send + Sync {
    /// A layer, or a chunk of the head, is about to run. May wait, for as long as it likes. False: the run is to stop; its
    /// unfinished step is thrown away, and it ends as one that was interrupted.
    fn enter(&self) -> bool;

    /// The pass through the layers is over, whether it came to its end or not: the machine is not needed for now.
    fn leave(&self);
}

/// A pass through a gate's layers. Dropped, it leaves.
pub(crate) struct Passage<'g>(Option<&'g dyn Gate>);

impl<'g> Passage<'g> {
    pub fn new(gate: Option<&'g dyn Gate>) -> Passage<'g> {
        Passage(gate)
    }

    /// Waits until the next layer may run.
    pub fn layer(&self) -> Result<(), TrainError> {
        match self.0 {
            Some(gate) if !gate.enter() => Err(TrainError::Stopped),
            _ => Ok(()),
        }
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.0 {
            gate.leave();
        }
    }
}
