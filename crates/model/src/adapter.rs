//! An adapter as the device runs it.

use formats::peft::Module;
use kernels::LoraPack;

/// One adapter's packed pairs, by layer and module.
pub struct Adapter {
    pub(crate) layers: Vec<[Option<LoraPack>; Module::ALL.len()]>,
}

impl Adapter {
    /// The pair of one linear layer, if the adapter has one.
    pub fn pack(&self, layer: usize, module: Module) -> Option<&LoraPack> {
        self.layers[layer][module as usize].as_ref()
    }

    /// Bytes in the device's memory.
    pub fn bytes(&self) -> u64 {
        let packs = self.layers.iter().flatten().flatten();
        packs.map(|p| p.bytes() as u64).sum()
    }
}
