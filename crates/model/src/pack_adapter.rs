//! A PEFT adapter packed for a model's device.

use crate::adapter::Adapter;
use crate::decoder::Model;
use crate::error::ModelError;
use formats::peft::{self, LoraPair, PairShape};
use formats::safetensors::Dtype;
use kernels::{Device, LoraArena, LoraType};

impl Model {
    /// Packs an adapter in the type of its file, after a check against this model.
    ///
    /// # Errors
    /// Shapes or layers of another model, by tensor name.
    pub fn load_adapter(&self, adapter: &peft::Adapter) -> Result<Adapter, ModelError> {
        adapter.check(self.config())?;
        self.pack_adapter(&adapter.pairs, lora_type(adapter.dtype))
    }

    /// [`Model::load_adapter`] of a folder whose values are widened on the way, a pair at a time.
    ///
    /// # Errors
    /// Those of [`Model::load_adapter`], and a value that is not a number.
    pub fn load_adapter_file(&self, adapter: &peft::AdapterFile) -> Result<Adapter, ModelError> {
        adapter.check(self.config())?;
        let shapes: Vec<PairShape> = adapter.shapes().collect();
        let mut packing = self.packing(&shapes, lora_type(adapter.dtype))?;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (i, shape) in shapes.iter().enumerate() {
            adapter.values(i, &mut a, &mut b)?;
            packing.add(shape, &a, &b)?;
        }
        Ok(packing.adapter)
    }

    /// Packs pairs whose shapes are already right.
    ///
    /// # Errors
    /// They are not.
    pub fn pack_adapter(&self, pairs: &[LoraPair], dtype: LoraType) -> Result<Adapter, ModelError> {
        // In the order in which a step reads them.
        let mut pairs: Vec<&LoraPair> = pairs.iter().collect();
        pairs.sort_by_key(|pair| (pair.layer, pair.module as usize));
        let shapes: Vec<PairShape> = pairs.iter().map(|pair| pair.shape()).collect();
        let mut packing = self.packing(&shapes, dtype)?;
        for (pair, shape) in pairs.iter().zip(&shapes) {
            packing.add(shape, &pair.a, &pair.b)?;
        }
        Ok(packing.adapter)
    }

    fn packing(&self, shapes: &[PairShape], dtype: LoraType) -> Result<Packing<'_>, ModelError> {
        let room = shapes.iter().map(|p| (p.outputs, p.inputs, p.rank));
        let arena = self.device().lora_arena(room, dtype);
        let layers = (0..self.config().layers).map(|_| Default::default());
        Ok(Packing {
            device: self.device(),
            arena: arena.map_err(|source| kernel_error("all".into(), source))?,
            dtype,
            adapter: Adapter {
                layers: layers.collect(),
            },
        })
    }
}

/// An adapter that is being packed, pair by pair, in the order in which a step reads them.
struct Packing<'a> {
    device: &'a Device,
    arena: LoraArena,
    dtype: LoraType,
    adapter: Adapter,
}

impl Packing<'_> {
    fn add(&mut self, pair: &PairShape, a: &[f32], b: &[f32]) -> Result<(), ModelError> {
        let shape = (pair.outputs, pair.inputs, pair.rank);
        let pack = self
            .device
            .lora_pack(&self.arena, a, b, shape, pair.scale, self.dtype)
            .map_err(|source| kernel_error(pair.module.path(pair.layer), source))?;
        self.adapter.layers[pair.layer][pair.module as usize] = Some(pack);
        Ok(())
    }
}

fn lora_type(dtype: Dtype) -> LoraType {
    match dtype {
        Dtype::F32 => LoraType::F32,
        Dtype::F16 => LoraType::F16,
        Dtype::BF16 => LoraType::Bf16,
    }
}

fn kernel_error(name: String, source: kernels::KernelError) -> ModelError {
    ModelError::Kernel {
        origin: "adapter".into(),
        name,
        source,
    }
}
