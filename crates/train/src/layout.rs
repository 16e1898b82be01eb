//! Lays out a batch's examples as rows of one step: concatenated, adapter by adapter.

use kernels::{BLOCK_TOKENS, RowDropout, Run, Span};

use crate::learner::BatchItem;

/// The rows of a batch, and which rows belong to which example and adapter.
pub(crate) struct Layout {
    pub(crate) tokens: Vec<u32>,
    sequences: Vec<(usize, usize)>,
    blocks: Vec<Vec<u32>>,
    pub(crate) runs: Vec<Run>,
    pub(crate) trained: Vec<TrainedRow>,
    /// By row; empty if no item has dropout.
    pub(crate) dropout: Vec<RowDropout>,
}

/// A row whose next token has a loss.
#[derive(Clone, Copy)]
pub(crate) struct TrainedRow {
    pub(crate) row: u32,
    pub(crate) next: u32,
    pub(crate) adapter: usize,
    /// Index of its example in the batch.
    pub(crate) item: usize,
}

impl Layout {
    pub(crate) fn new(adapters: usize, batch: &[BatchItem<'_>]) -> Layout {
        let mut layout = Layout {
            tokens: Vec::new(),
            sequences: Vec::new(),
            blocks: Vec::new(),
            runs: Vec::new(),
            trained: Vec::new(),
            dropout: Vec::new(),
        };
        let any_dropout = batch.iter().any(|item| item.mask.is_some());
        let mut next_block = 0u32;
        for adapter in 0..adapters {
            let first = layout.tokens.len();
            let of_adapter = |(_, item): &(usize, &BatchItem<'_>)| item.adapter == adapter;
            for (index, item) in batch.iter().enumerate().filter(of_adapter) {
                // The last token predicts nothing, so it needs no row.
                let tokens = &item.example.tokens[..item.example.tokens.len().saturating_sub(1)];
                let at = layout.tokens.len();
                layout.tokens.extend_from_slice(tokens);
                layout.sequences.push((at, tokens.len()));
                match item.mask {
                    Some(mask) => layout.dropout.extend(mask.rows(tokens.len())),
                    None if any_dropout => layout
                        .dropout
                        .resize(layout.tokens.len(), RowDropout::default()),
                    None => {}
                }
                let blocks = tokens.len().div_ceil(BLOCK_TOKENS) as u32;
                layout
                    .blocks
                    .push((next_block..next_block + blocks).collect());
                next_block += blocks;
                for (i, trained) in item.example.loss_mask.iter().enumerate().skip(1) {
                    if *trained {
                        layout.trained.push(TrainedRow {
                            row: (at + i - 1) as u32,
                            next: item.example.tokens[i],
                            adapter,
                            item: index,
                        });
                    }
                }
            }
            let rows = layout.tokens.len() - first;
            if rows > 0 {
                layout.runs.push(Run {
                    first,
                    rows,
                    slots: vec![(adapter as u32, 1.0)],
                });
            }
        }
        layout
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks.iter().map(Vec::len).sum()
    }

    pub(crate) fn spans(&self) -> Vec<Span<'_>> {
        let each = self.sequences.iter().zip(&self.blocks);
        each.map(|(&(first, rows), blocks)| Span {
            first,
            rows,
            past: 0,
            blocks,
        })
        .collect()
    }
}
