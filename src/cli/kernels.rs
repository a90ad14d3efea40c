//! `promptmix kernels`: the compiled kernels and their interface, for programs in other languages.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::backend::cuda::COMPILER;
use crate::backend::cuda::export::{ABI, Architecture, DESCRIPTION, HEADER, Image, images};
use crate::error::{Error, Result};
use crate::files;

/// Flags of `promptmix kernels`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix kernels export kernels --arch sm_90")]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Write the kernels' images, promptmix.h for C and C++, and promptmix.json
    Export(Export),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix kernels export kernels --arch compute_80")]
struct Export {
    /// Folder to write to; it is made where it is missing, and files of the same names in it are replaced
    folder: PathBuf,
    /// `all` for fatbins, `sm_90` for that machine code as cubins, `compute_80` for PTX
    #[arg(long, default_value = "all")]
    arch: String,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self.what {
            What::Export(export) => export.run(),
        }
    }
}

impl Export {
    fn run(self) -> Result<ExitCode> {
        let images = images(self.arch.parse::<Architecture>()?)?;
        if let Some(file) =
            self.folder.ancestors().find(|place| place.exists()).filter(|place| !place.is_dir())
        {
            let found = format!("{}, which is no folder", file.display());
            return Err(Error::setting(
                "FOLDER",
                "a folder to write to",
                found,
                "name another place, or move it away",
            ));
        }
        std::fs::create_dir_all(&self.folder).map_err(|error| Error::file("create", &self.folder, error))?;
        let name = |image: &Image| format!("{}.{}", image.stem, image.extension);
        let mut bytes = 0;
        for image in &images {
            write(&self.folder.join(name(image)), image.bytes)?;
            bytes += image.bytes.len();
        }
        write(&self.folder.join("promptmix.h"), HEADER.as_bytes())?;
        let path = self.folder.join("promptmix.json");
        let mut description: Value = serde_json::from_str(DESCRIPTION)
            .map_err(|error| Error::format(&path, None, "JSON", error.to_string(), "report it"))?;
        description["version"] = json!(env!("CARGO_PKG_VERSION"));
        description["compiler"] = json!(COMPILER);
        description["architecture"] = json!(self.arch);
        description["files"] =
            images.iter().map(|image| json!({ "file": image.stem, "name": name(image) })).collect();
        write(&path, format!("{description:#}\n").as_bytes())?;
        println!(
            "{} kernel files of {}, {:.1} MB, with promptmix.h and promptmix.json (ABI {ABI:#010x}) in {}",
            images.len(),
            self.arch,
            bytes as f64 / 1e6,
            self.folder.display()
        );
        Ok(ExitCode::SUCCESS)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    files::replace(path, |file| std::io::Write::write_all(file, bytes))
}
