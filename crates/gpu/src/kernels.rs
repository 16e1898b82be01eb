//! The kernels: where each one's source is, and what it binds.

use crate::executor::Access::{self, Read, Write};
use crate::executor::Kernel;

const PRELUDE: &str = include_str!("shaders/prelude.wgsl");
const SUM: &str = include_str!("shaders/sum.wgsl");
const STEP: &str = include_str!("shaders/step.wgsl");
const ADAPTERS: &str = include_str!("shaders/adapters.wgsl");

macro_rules! kernels {
    ($($constant:ident = $entry:literal of $source:ident: $bindings:expr;)*) => {
        $(pub(crate) const $constant: Kernel = Kernel {
            source: &$source,
            entry: $entry,
            bindings: $bindings,
        };)*
        /// All of them.
        #[cfg(test)]
        pub(crate) const ALL: &[&Kernel] = &[$(&$constant),*];
    };
}

const ROWS: [&str; 3] = [PRELUDE, SUM, include_str!("shaders/rows.wgsl")];
const PREPARE: [&str; 5] = [
    PRELUDE,
    SUM,
    STEP,
    ADAPTERS,
    include_str!("shaders/prepare.wgsl"),
];
const PRODUCT: [&str; 4] = [
    PRELUDE,
    STEP,
    ADAPTERS,
    include_str!("shaders/product.wgsl"),
];
const ROPE: [&str; 3] = [PRELUDE, STEP, include_str!("shaders/rope_store.wgsl")];
const ATTENTION: [&str; 4] = [PRELUDE, SUM, STEP, include_str!("shaders/attention.wgsl")];
const LOSS: [&str; 3] = [PRELUDE, SUM, include_str!("shaders/loss.wgsl")];

const TOP: [&str; 3] = [PRELUDE, SUM, include_str!("shaders/candidates.wgsl")];

const ROW_BINDINGS: &[Access] = &[Read, Read, Read, Write];
const PRODUCT_BINDINGS: &[Access] = &[
    Read, Read, Read, Read, Read, Read, Read, Read, Read, Read, Read, Read, Read, Read, Read,
    Write, Write, Write,
];
const ATTENTION_BINDINGS: &[Access] = &[Read, Read, Read, Write, Write];

kernels! {
    NORM = "norm" of ROWS: ROW_BINDINGS;
    SWIGLU = "swiglu" of ROWS: ROW_BINDINGS;
    GATHER = "gather" of ROWS: ROW_BINDINGS;
    ROWS_BEFORE = "prepare" of PREPARE: &[Read, Read, Read, Read, Read, Write, Write, Write, Write];
    PRODUCT_OF_FEW = "few" of PRODUCT: PRODUCT_BINDINGS;
    PRODUCT_OF_MANY = "many" of PRODUCT: PRODUCT_BINDINGS;
    EMBED = "embed" of PRODUCT: PRODUCT_BINDINGS;
    ROPE_STORE = "rope_store" of ROPE: &[Read, Read, Read, Read, Read, Read, Read, Write, Write, Write];
    CROSS_ENTROPY = "cross_entropy" of LOSS: &[Read, Write, Write];
    CANDIDATES = "candidates" of TOP: &[Read, Read, Write];
    ATTENTION_WALK = "walk" of ATTENTION: ATTENTION_BINDINGS;
    ATTENTION_SPLIT = "split" of ATTENTION: ATTENTION_BINDINGS;
    ATTENTION_COMBINE = "combine" of ATTENTION: ATTENTION_BINDINGS;
}
