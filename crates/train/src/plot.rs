//! SVG charts: the loss curve of a run (`loss_curve`) and the curves of a learning rate sweep (`lr_curve`).
//!
//! Pure functions from numbers to text. The colours follow the reader's light or dark setting.

mod chart;
mod loss_curve;
mod lr_curve;

pub use chart::escape_xml;
pub use loss_curve::{LossCurve, loss_curve};
pub use lr_curve::{LrCurve, lr_curve};
