//! Everything that computes: quantized products with mixed LoRA, paged attention, and the backward of each, on every device.
//! All intrinsics are here, and unsafe code is only here and in `gpu`; the public interface is safe.
//! Read `device` first, then the module of your subject, then `cpu/mod.rs`.
//!
//! It knows tensors and rows. It does not know models, file formats or requests.
//!
//! # The public interface
//!
//! Everything is made by a [`Device`] and computed by one of its methods. What a device makes is opaque: values cross between
//! host and device only in calls that say so ([`Device::upload`], [`Tensor::read_into`], [`Device::read_gradients`]).
//!
//! | module | types | methods of [`Device`] |
//! |---|---|---|
//! | `device` | [`Device`], [`DeviceChoice`], [`GpuInfo`] | `open`, `gpus`, `describe`, `wait`, `pausing`, `trains`, `launches`, `fault` |
//! | `tensor` | [`Tensor`], [`Vector`] | `tensor`, `upload`, `vector`, `clear`, `copy`, `gather_rows`, `scatter_rows`, `scale_rows` |
//! | `step` | [`Step`] | `step`: a step's tokens, sequences, adapter runs and dropout, uploaded once |
//! | `weights` | [`Weights`] | `pack`, `embed` |
//! | `linear` | [`Projection`], [`Workspace`] | `linear`, `linear_backward`, `head_backward` |
//! | `lora` | [`LoraPack`], [`LoraArena`], [`LoraGrad`] | `lora_pack`, `lora_backward`, `read_gradients` |
//! | `norm` | [`Norm`] | `rmsnorm`, `norm_heads`, and their backwards |
//! | `activation` | | `swiglu`, `swiglu_backward` |
//! | `kv` | [`KvCache`], [`RopeTable`] | `rope_store`, `attention`, and their backwards |
//! | `loss` | | `cross_entropy` |
//! | `candidates` | [`Candidates`], [`Search`] | `candidates`, `shares_memory` |
//!
//! Plain data, from `kernels-common`: `dtype` (types of values), `rows` (a step's metadata), `error`, `quantized` (source formats).
//!
//! # Devices
//!
//! `cpu/` is the CPU, the crate `gpu` is Vulkan and Metal; the front page of each says what to read first. A CUDA device is a crate
//! next to `gpu`, a variant of `device::Kind` and of `device::Form`, and an arm in each method. Little above this crate changes.
//!
//! `host/` is about the process's memory and files; it is used with every device.

use ::gpu;
use kernels_common::{dtype, error, quantized, rows};

mod activation;
mod candidates;
mod cpu;
mod device;
mod host;
mod kv;
mod linear;
mod lora;
mod loss;
mod norm;
mod step;
mod tensor;
mod weights;

pub use candidates::{Candidates, MOST_CANDIDATES, Search};
pub use cpu::isa::Isa;
pub use device::{Backend, Device, DeviceChoice};
pub use dtype::{Compute, KvShape, KvType, LoraType, SourceType};
pub use error::KernelError;
pub use gpu::info::{GpuApi, GpuInfo, GpuKind};
pub use host::{MappedFile, map_file, return_freed_memory, trim_heap};
pub use kv::{AttentionInputs, HeadNorms, KvCache, RopeTable};
pub use linear::{Projection, Workspace};
pub use lora::{Lora, LoraArena, LoraGrad, LoraMaster, LoraPack};
pub use norm::Norm;
pub use rows::{BLOCK_TOKENS, RowDropout, Run, Span, StepRows};
pub use step::Step;
pub use tensor::{Tensor, Vector};
pub use weights::Weights;
