//! Projections: `prepare` normalises or gates rows, rounds them and multiplies them with A of their adapters; then up to three
//! matrices of one format are multiplied in one launch, which adds the products with B.

use crate::device::GpuDevice;
use crate::executor::{Buffer, Launch};
use crate::kernels::{EMBED, PRODUCT_OF_FEW, PRODUCT_OF_MANY, ROWS_BEFORE};
use crate::lora::LoraPack;
use crate::rows::Norm;
use crate::step::Step;
use crate::tensor::{Growing, Tensor, Vector};
use crate::weights::{Format, Part, Weights};
use kernels_common::dtype::Compute;
use kernels_common::quantized::GROUP;

/// From so many rows on, `many` reads a matrix fewer times than `few`.
const MANY_ROWS: usize = 8;
/// Rows of A that a workgroup of `prepare` multiplies.
const RANK_CHUNK: usize = 8;
/// Matrices of one launch.
const PARTS: usize = 3;

/// The adapters of one projection.
pub struct Lora<'a> {
    /// The step whose rows have the adapters.
    pub step: &'a Step,
    /// By slot.
    pub packs: Vec<Option<&'a LoraPack>>,
}

/// One projection of the shared rows.
pub struct Projection<'a> {
    /// Frozen weights.
    pub weights: &'a Weights,
    /// Added to every row before LoRA.
    pub bias: Option<&'a Vector>,
    /// Adapters.
    pub lora: Option<Lora<'a>>,
    /// rows x outputs.
    pub out: &'a mut Tensor,
    /// Add to `out` rather than replace it.
    pub accumulate: bool,
}

/// What happens to the rows before they are multiplied.
#[derive(Clone, Copy)]
pub enum Prologue<'a> {
    /// Nothing.
    None,
    /// The norm of the rows.
    Norm(Norm<'a>),
    /// silu(rows) * up.
    Swiglu(&'a Tensor),
}

impl Prologue<'_> {
    /// As `prologue` in prepare.wgsl.
    fn code(&self) -> u32 {
        match self {
            Prologue::None => 0,
            Prologue::Norm(_) => 1,
            Prologue::Swiglu(_) => 2,
        }
    }
}

/// Rows in the form that products read.
pub struct Workspace {
    int8: Growing,
    scales: Growing,
    shrunk: Growing,
}

/// How the shaders find the adapters of a call's rows.
struct Adapters<'a> {
    metadata: &'a Buffer,
    tables: Buffer,
    heap: Buffer,
    projections: usize,
    /// The most adapters of a row; 0: nobody has any.
    entries: usize,
    padded: usize,
    table: u32,
    slots: usize,
}

impl Adapters<'_> {
    fn parameters(&self) -> [u32; 5] {
        let [projections, entries, padded, slots] =
            [self.projections, self.entries, self.padded, self.slots].map(|n| n as u32);
        [projections, entries, padded, self.table, slots]
    }
}

/// The rows of one launch, and how their matrices are stored.
struct Product {
    rows: Buffer,
    scales: Buffer,
    shrunk: Buffer,
    count: usize,
    inputs: usize,
    format: Format,
    int8: bool,
}

/// A part of a projection's matrix.
struct Item<'a> {
    projection: usize,
    part: &'a Part,
}

impl GpuDevice {
    /// An empty workspace.
    pub fn workspace(&self) -> Workspace {
        Workspace {
            int8: Growing::new(self.executor()),
            scales: Growing::new(self.executor()),
            shrunk: Growing::new(self.executor()),
        }
    }

    /// `out` becomes the step's tokens x inputs.
    ///
    /// # Panics
    /// A token past the table.
    pub fn embed(&self, table: &Weights, step: &Step, out: &mut Tensor) {
        assert!(
            step.tokens <= table.outputs,
            "a token past the embedding table"
        );
        out.resize(step.rows, table.inputs);
        for part in &table.parts {
            let scales = part.scales.as_ref().unwrap_or(self.unread());
            let unread = self.unread();
            let mut buffers = [unread; 18];
            (buffers[0], buffers[3], buffers[12], buffers[15]) =
                (&part.values, scales, &step.buffer, out.buffer());
            (buffers[16], buffers[17]) = (self.unwritten(1), self.unwritten(2));
            let mut parameters = [0; 24];
            parameters[1] = table.inputs as u32;
            parameters[12..16].copy_from_slice(&[
                part.outputs as u32,
                table.outputs as u32,
                part.first as u32,
                0,
            ]);
            self.executor().launch(&Launch {
                kernel: &EMBED,
                constants: &table.format.constants(false),
                buffers: &buffers,
                parameters: &parameters,
                groups: [table.inputs.div_ceil(GROUP).div_ceil(64), step.rows, 1],
            });
        }
    }

    /// Projects the rows of `x`: with x' the rows after the prologue, each projection becomes
    /// `out (+)= x' W^T + bias + sum of scale * (x' A^T) B^T`. `float` has x' if a product needs it in f32.
    ///
    /// # Panics
    /// Shapes that do not fit, or a run past the rows.
    pub fn linear(
        &self,
        workspace: &mut Workspace,
        float: &mut Tensor,
        x: &Tensor,
        prologue: Prologue,
        projections: &mut [Projection],
        compute: Compute,
    ) {
        let (rows, columns) = (x.rows(), x.columns());
        for p in projections.iter_mut() {
            let outputs = p.weights.outputs;
            assert_eq!(p.weights.inputs, columns);
            assert!(p.bias.is_none_or(|b| b.length == outputs));
            if p.accumulate {
                assert_eq!((p.out.rows(), p.out.columns()), (rows, outputs));
            } else {
                p.out.resize(rows, outputs);
            }
            for pack in p.lora.iter().flat_map(|l| l.packs.iter().flatten()) {
                assert_eq!((pack.inputs, pack.outputs), (columns, outputs));
            }
        }
        if rows == 0 {
            return;
        }
        let int8 = |w: &Weights| compute == Compute::Int8 && w.is_quantized();
        let adapters = self.adapters(rows, projections);
        let any_int8 = projections.iter().any(|p| int8(p.weights));
        let any_float = projections.iter().any(|p| !int8(p.weights));
        match prologue {
            Prologue::None => {}
            Prologue::Norm(norm) => assert_eq!(norm.weight.length, columns),
            Prologue::Swiglu(up) => assert_eq!((up.rows(), up.columns()), (rows, columns)),
        }
        let write_float = any_float && !matches!(prologue, Prologue::None);
        if write_float {
            float.resize(rows, columns);
        }
        self.prepare(
            workspace,
            float,
            x,
            prologue,
            &adapters,
            (any_int8, write_float),
        );
        let float_rows = if write_float { &*float } else { x };
        let mut items: Vec<Item> = Vec::new();
        for (projection, p) in projections.iter().enumerate() {
            items.extend(p.weights.parts.iter().map(|part| Item { projection, part }));
        }
        let format = |item: &Item| projections[item.projection].weights.format;
        // Parts of one matrix write to one result, so they are in different launches.
        let together = |a: &Item, b: &Item| format(a) == format(b) && a.projection != b.projection;
        for items in items
            .chunk_by(together)
            .flat_map(|items| items.chunks(PARTS))
        {
            let format = format(&items[0]);
            let int8 = int8(projections[items[0].projection].weights);
            let launch = Product {
                rows: match int8 {
                    true => workspace.int8.with_room(0).clone(),
                    false => float_rows.buffer().clone(),
                },
                scales: workspace.scales.with_room(0).clone(),
                shrunk: workspace.shrunk.with_room(0).clone(),
                count: rows,
                inputs: columns,
                format,
                int8,
            };
            self.multiply(&launch, &adapters, projections, items);
        }
    }

    /// Where the adapters of the rows are.
    fn adapters<'a>(&'a self, rows: usize, projections: &[Projection<'a>]) -> Adapters<'a> {
        let packs = |p: &Projection<'a>| p.lora.as_ref().map_or(Vec::new(), |l| l.packs.clone());
        let packs: Vec<_> = projections.iter().map(packs).collect();
        let slots = packs.iter().map(Vec::len).max().unwrap_or(0);
        let rank = packs.iter().flatten().flatten().map(|pack| pack.rank).max();
        let step = projections
            .iter()
            .find_map(|p| p.lora.as_ref())
            .map(|l| l.step);
        if let Some(step) = step {
            assert!(step.rows == rows && step.slots <= slots);
        }
        let entries = step.map_or(0, |step| if rank.is_some() { step.entries } else { 0 });
        let words = |p: &Vec<Option<&LoraPack>>| -> Vec<u32> {
            let entry = |slot| {
                p.get(slot)
                    .copied()
                    .flatten()
                    .map_or([0; 4], LoraPack::table_entry)
            };
            (0..slots).flat_map(entry).collect()
        };
        let words = if entries > 0 {
            packs.iter().flat_map(words).collect()
        } else {
            Vec::new()
        };
        let (tables, table) = self.table(words);
        Adapters {
            metadata: step.map_or(self.unread(), |step| &step.buffer),
            tables,
            heap: self.heap().buffer(),
            projections: projections.len(),
            entries,
            padded: rank.unwrap_or(0),
            table,
            slots,
        }
    }

    /// Writes what the products will read.
    fn prepare(
        &self,
        workspace: &mut Workspace,
        float: &Tensor,
        x: &Tensor,
        prologue: Prologue,
        adapters: &Adapters,
        (int8, write_float): (bool, bool),
    ) {
        let (rows, columns) = (x.rows(), x.columns());
        let entries = adapters.projections * adapters.entries;
        if !int8 && !write_float && entries == 0 {
            return;
        }
        let (second, eps) = match prologue {
            Prologue::None => (self.unread(), 0),
            Prologue::Norm(norm) => (&norm.weight.buffer, norm.eps.to_bits()),
            Prologue::Swiglu(up) => (up.buffer(), 0),
        };
        let groups = if int8 { rows * columns / GROUP } else { 0 };
        let [lora_0, lora_1, lora_2, lora_3, lora_4] = adapters.parameters();
        self.executor().launch(&Launch {
            kernel: &ROWS_BEFORE,
            constants: &[],
            buffers: &[
                x.buffer(),
                second,
                adapters.metadata,
                &adapters.tables,
                &adapters.heap,
                workspace.int8.with_room(groups * GROUP / 4),
                workspace.scales.with_room(groups * 2),
                if write_float {
                    float.buffer()
                } else {
                    self.unwritten(0)
                },
                workspace.shrunk.with_room(rows * entries * adapters.padded),
            ],
            parameters: &[
                columns as u32,
                eps,
                prologue.code(),
                u32::from(int8),
                u32::from(write_float),
                lora_0,
                lora_1,
                lora_2,
                lora_3,
                lora_4,
            ],
            groups: [1 + entries * adapters.padded.div_ceil(RANK_CHUNK), rows, 1],
        });
    }

    fn multiply(
        &self,
        product: &Product,
        adapters: &Adapters,
        projections: &[Projection],
        items: &[Item],
    ) {
        let many = product.count >= MANY_ROWS;
        let (kernel, outputs_of_tile) = match many {
            true => (&PRODUCT_OF_MANY, 64),
            false => (&PRODUCT_OF_FEW, 32),
        };
        let mut buffers = [self.unread(); 18];
        let mut parameters = [0u32; 24];
        // No tile reaches a part that is not there.
        parameters[..4].copy_from_slice(&[
            product.count as u32,
            product.inputs as u32,
            u32::MAX,
            u32::MAX,
        ]);
        parameters[4..9].copy_from_slice(&adapters.parameters());
        let mut tiles = 0;
        for i in 0..PARTS {
            buffers[15 + i] = self.unwritten(i);
            let Some(Item { projection, part }) = items.get(i) else {
                continue;
            };
            let p = &projections[*projection];
            buffers[i] = &part.values;
            buffers[3 + i] = part.scales.as_ref().unwrap_or(self.unread());
            buffers[6 + i] = p.bias.map_or(self.unread(), |bias| &bias.buffer);
            buffers[15 + i] = p.out.buffer();
            if i > 0 {
                parameters[1 + i] = tiles as u32;
            }
            tiles += part.outputs.div_ceil(outputs_of_tile);
            let flags = u32::from(p.accumulate)
                | u32::from(p.bias.is_some()) << 1
                | (*projection as u32) << 8;
            let shape = [
                part.outputs as u32,
                p.weights.outputs as u32,
                part.first as u32,
                flags,
            ];
            parameters[12 + 4 * i..][..4].copy_from_slice(&shape);
        }
        buffers[9..15].copy_from_slice(&[
            &product.rows,
            &product.scales,
            &product.shrunk,
            adapters.metadata,
            &adapters.tables,
            &adapters.heap,
        ]);
        let groups = if many {
            product.count.div_ceil(4)
        } else {
            product.count
        };
        self.executor().launch(&Launch {
            kernel,
            constants: &product.format.constants(product.int8),
            buffers: &buffers,
            parameters: &parameters,
            groups: [tiles, groups, 1],
        });
    }
}
