//! `promptmix prompts nearest`.

use std::path::PathBuf;

use super::printable;
use crate::backend::cpu::Cpu;
use crate::error::Result;
use crate::pretrained::{self, Checkpoint, Token, TokenKind, Tokenizer};
use crate::prompts::{self, Neighbor};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix prompts nearest runs/sst2/prompt.safetensors --model t5-small --rows 10

Similarity is the cosine of the angle between a row and a word's row of the model's embedding. Words are as the vocabulary writes
them, with ▁ for a blank before.")]
pub(super) struct Arguments {
    /// The prompt, in any format that import knows, or a run's folder
    prompt: PathBuf,
    /// The model that it was trained with: a folder or hub id
    #[arg(long)]
    model: String,
    /// The first so many rows [default: all]
    #[arg(long)]
    rows: Option<usize>,
    /// Words a row
    #[arg(long, default_value_t = 5)]
    top: usize,
    /// Print a line of JSON a row
    #[arg(long)]
    json: bool,
    /// Threads of the CPU; one a core if not given
    #[arg(long)]
    threads: Option<usize>,
}

impl Arguments {
    pub(super) fn run(self) -> Result<()> {
        let prompt = prompts::import(&self.prompt)?.prompt;
        let checkpoint = Checkpoint::open(&pretrained::locate(&self.model)?)?;
        // The hash reads the whole model: only where there is one to compare it with.
        let hash = match prompt.metadata().model_sha256 {
            Some(_) => Some(checkpoint.sha256()?),
            None => None,
        };
        prompt.check_fits(checkpoint.config().d_model, hash)?;
        let tokenizer = Tokenizer::open(checkpoint.folder(), checkpoint.config())?;
        let cpu = Cpu::new(self.threads)?;
        let rows = self.rows.unwrap_or(prompt.length());
        let found = prompts::nearest(&checkpoint, &cpu, &prompt, rows, self.top)?;
        if !self.json {
            println!("{:>5}  nearest words, with cosine similarities", "row");
        }
        for (row, found) in found.iter().enumerate() {
            if self.json {
                let words = found.iter().map(|neighbor| json(neighbor, &tokenizer.token(neighbor.id)));
                println!("{}", serde_json::json!({ "row": row, "nearest": words.collect::<Vec<_>>() }));
            } else {
                let words = found.iter().map(|neighbor| said(neighbor, &tokenizer.token(neighbor.id)));
                println!("{row:>5}  {}", words.collect::<Vec<_>>().join("  "));
            }
        }
        Ok(())
    }
}

fn json(neighbor: &Neighbor, token: &Token) -> serde_json::Value {
    serde_json::json!({
        "id": neighbor.id, "token": token.text, "kind": token.kind.name(), "similarity": neighbor.similarity,
    })
}

fn said(neighbor: &Neighbor, token: &Token) -> String {
    // A piece may be a line break.
    let text = printable(&token.text);
    let mark = match token.kind {
        TokenKind::Text => String::new(),
        TokenKind::Unused => format!("{} (unused)", neighbor.id),
        kind => format!(" ({})", kind.name()),
    };
    format!("{text}{mark} {:.4}", neighbor.similarity)
}
