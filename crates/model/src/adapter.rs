//! An adapter as the kernels run it.

use crate::{Model, ModelError};
use formats::peft::{self, LoraPair, Module};
use formats::safetensors::Dtype;
use kernels::{LoraArena, LoraPack, LoraType};

/// One adapter's packed pairs, by layer and module.
pub struct Adapter {
    layers: Vec<[Option<LoraPack>; Module::ALL.len()]>,
}

impl Adapter {
    /// The pair of one linear layer, if the adapter has one.
    pub fn pack(&self, layer: usize, module: Module) -> Option<&LoraPack> {
        self.layers[layer][module as usize].as_ref()
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> u64 {
        let packs = self.layers.iter().flatten().flatten();
        packs.map(|p| p.bytes() as u64).sum()
    }
}

impl Model {
    /// Packs an adapter in the type of its file, after a check against this model.
    ///
    /// # Errors
    /// Shapes or layers of another model, by tensor name.
    pub fn load_adapter(&self, adapter: &peft::Adapter) -> Result<Adapter, ModelError> {
        adapter.check(self.config())?;
        let dtype = match adapter.dtype {
            Dtype::F32 => LoraType::F32,
            Dtype::F16 => LoraType::F16,
            Dtype::BF16 => LoraType::Bf16,
        };
        self.pack_adapter(&adapter.pairs, dtype)
    }

    /// Packs pairs whose shapes are already right.
    ///
    /// # Errors
    /// They are not.
    pub fn pack_adapter(&self, pairs: &[LoraPair], dtype: LoraType) -> Result<Adapter, ModelError> {
        let mut layers: Vec<[Option<LoraPack>; Module::ALL.len()]> = (0..self.config().layers)
            .map(|_| Default::default())
            .collect();
        let shapes = pairs.iter().map(|p| (p.outputs, p.inputs, p.rank));
        let arena = LoraArena::for_shapes(shapes, dtype).map_err(|source| ModelError::Kernel {
            origin: "adapter".into(),
            name: "all".into(),
            source,
        })?;
        // In the order in which a step reads them.
        let mut pairs: Vec<&LoraPair> = pairs.iter().collect();
        pairs.sort_by_key(|pair| (pair.layer, pair.module as usize));
        for pair in pairs {
            let shape = (pair.outputs, pair.inputs, pair.rank);
            let pack = LoraPack::new(&arena, &pair.a, &pair.b, shape, pair.scale, dtype);
            let pack = pack.map_err(|source| ModelError::Kernel {
                origin: "adapter".into(),
                name: pair.module.path(pair.layer),
                source,
            })?;
            layers[pair.layer][pair.module as usize] = Some(pack);
        }
        Ok(Adapter { layers })
    }
}
