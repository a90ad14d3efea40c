//! A trained run with other sources: the scorer's numbers do not depend on how many prompts it mixes, so one can be added
//! or taken away without training.

use std::path::{Path, PathBuf};

use super::RunFolder;
use crate::backend::Scorer;
use crate::config::Method;
use crate::count::counted;
use crate::error::{Error, Result};
use crate::prompts::{Prompt, load_sources};

/// What of a run's folder does not depend on its sources. The state last: a folder without it is no trained run.
const KEPT: [&str; 3] = ["prompt.safetensors", "scorer.safetensors", "best.safetensors"];
/// The folder of a run's target prompts, where it has several.
const TARGETS: &str = "prompts";

/// Writes the run of `folder` to the new folder `out`, mixing `sources` instead of its own; gives back their names.
///
/// # Errors
/// [`Error::Setting`] if it is no ATTEMPT run, there are no sources, one does not fit the run's model or length, one of its own
/// has changed, or `out` is not empty; those of reading and writing.
pub fn change_sources(folder: &Path, out: &Path, sources: &[PathBuf]) -> Result<Vec<String>> {
    let mut saved = RunFolder::saved(folder)?;
    if saved.config.method != Method::Attempt {
        return Err(Error::setting(
            "--run",
            "a run of --method attempt, which mixes sources",
            format!("one of {}", saved.config.method.name()),
            "",
        ));
    }
    if saved.config.scorer == Scorer::Constant {
        return Err(Error::setting(
            "--run",
            "a scorer that does not depend on how many sources there are",
            "the constant one, which has a logit for each",
            "train it anew with the other sources",
        ));
    }
    let Some(first) = sources.first() else {
        return Err(Error::setting(
            "sources",
            "at least one",
            "none",
            "a mixture needs a source; export the target prompt if it is to stand alone",
        ));
    };
    let prompts = load_sources(sources, Prompt::load(first)?.width())?;
    for prompt in &prompts {
        prompt.check_fits(prompt.width(), Some(&saved.model_hash))?;
        if prompt.length() != saved.config.prompt_length {
            return Err(Error::setting(
                format!("prompt {}", prompt.name()),
                format!("{}, as the run's prompts have", counted(saved.config.prompt_length, "row")),
                prompt.length().to_string(),
                "sources and target prompt are mixed row by row and must be of one length",
            ));
        }
    }
    check_width(folder, &prompts[0])?;
    for (index, own) in saved.located(folder).sources.iter().enumerate() {
        if let Some(kept) = sources.iter().position(|source| source == own) {
            saved.check_source(index, &prompts[kept], own, "--run")?;
        }
    }
    saved.config.sources = sources.to_vec();
    saved.sources_sha256 = prompts.iter().map(Prompt::sha256).collect();
    saved.promptmix = env!("CARGO_PKG_VERSION").into();
    // Relative paths of the settings start where the run was trained; those of the sources are of here.
    let here = std::env::current_dir().map_err(|source| Error::file("find", ".", source))?;
    if saved.trained_in.as_ref().is_some_and(|folder| *folder != here) {
        saved.config.sources.iter_mut().for_each(|path| *path = here.join(&*path));
    }
    let mut new = RunFolder::create_as(out, &saved)?;
    let names = super::source_names(sources);
    let noted = new.note(&format!("sources of {} changed to {}", folder.display(), names.join(", ")));
    if let Err(error) = noted.and_then(|()| copy_kept(folder, out)) {
        // The folder is to be free for the next try; what cannot be removed says no more than the error at hand.
        drop(new);
        KEPT.iter().for_each(|name| drop(std::fs::remove_file(out.join(name))));
        let _ = std::fs::remove_dir_all(out.join(TARGETS));
        let _ = RunFolder::take_back(out);
        return Err(error);
    }
    Ok(names)
}

/// Copies what does not depend on the sources.
fn copy_kept(folder: &Path, out: &Path) -> Result<()> {
    let targets = folder.join(TARGETS);
    if let Ok(entries) = std::fs::read_dir(&targets) {
        let kept = out.join(TARGETS);
        std::fs::create_dir_all(&kept).map_err(|source| Error::file("create", &kept, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| Error::file("read", &targets, source))?;
            copy(&entry.path(), &kept.join(entry.file_name()))?;
        }
    }
    KEPT.iter().try_for_each(|name| copy(&folder.join(name), &out.join(name)))
}

/// The sources must be as wide as what the run trained.
fn check_width(folder: &Path, source: &Prompt) -> Result<()> {
    let path = folder.join("best.safetensors");
    let file = crate::pretrained::TensorFile::open_safetensors(&path)?;
    let width = file.names().find_map(|name| match (name, file.shape(name)) {
        ("target_prompts" | "w_down", Ok(shape)) => shape.last().copied(),
        ("norm_weight", Ok(shape)) => shape.first().copied(),
        _ => None,
    });
    width.map_or(Ok(()), |width| source.check_fits(width, None))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let Some(bytes) = crate::files::read(from)? else { return Ok(()) };
    crate::files::replace(to, |file| std::io::Write::write_all(file, &bytes))
}
