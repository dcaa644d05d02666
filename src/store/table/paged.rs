//! Paged arrays: arrays of fixed entries in pages, found through a directory of pointer pages in the same
//! cache. One generic piece of code for all tables; the node table is the directory of the array of nodes.

use crate::format::page::{PAGE_BYTES, POINTERS_PER_PAGE, PageFacts, PageKey, PagePointer, Table};
use crate::format::root::TableRoot;

use super::super::core::{Core, Stall};
use super::cache::Frame;

/// Whether a directory of `height` levels reaches a page of the table itself.
fn reaches(height: u8, number: u64) -> bool {
    POINTERS_PER_PAGE.checked_pow(u32::from(height)).is_none_or(|pages| number < pages)
}

impl Core {
    /// Where the stored state of a page is.
    ///
    /// # Errors
    /// A stall while a directory page is not in memory.
    pub(crate) fn pointer(&mut self, key: PageKey) -> Result<PagePointer, Stall> {
        let TableRoot { height, pointer } = self.roots[key.table.index()];
        if key.level > height || (key.level == height && key.number > 0) {
            return Ok(PagePointer::default());
        }
        if key.level == height {
            return Ok(pointer);
        }
        let (parent, slot) = key.parent();
        Ok(PagePointer::at(&self.frame(parent)?.page, slot))
    }

    /// Makes sure that a page is in memory; one that does not exist appears as zeros.
    ///
    /// # Errors
    /// A stall while it, or a directory page above it, is not.
    pub(crate) fn bring_in(&mut self, key: PageKey) -> Result<(), Stall> {
        if self.cache.holds(key) {
            return Ok(());
        }
        let pointer = self.pointer(key)?;
        if pointer.is_none() {
            self.cache.insert(key, &[0; PAGE_BYTES], PageFacts::default());
            return Ok(());
        }
        Err(Stall::Load(key, pointer))
    }

    /// A page, brought in where it is not in memory: one look for both.
    ///
    /// # Errors
    /// As `bring_in`.
    pub(crate) fn frame(&mut self, key: PageKey) -> Result<&Frame, Stall> {
        if let Some(place) = self.cache.place_of(key) {
            return Ok(self.cache.at(place));
        }
        self.bring_in(key)?;
        Ok(self.cache.page(key))
    }

    /// Sets where the stored state of a page is, for the checkpoint under way; the directory pages that this
    /// changes are added to `changed`.
    ///
    /// # Errors
    /// A stall while a directory page is not in memory; then nothing has changed.
    pub(crate) fn set_pointer(
        &mut self,
        key: PageKey,
        pointer: PagePointer,
        changed: &mut Vec<PageKey>,
    ) -> Result<(), Stall> {
        if key.level == 0 {
            self.raise_directory(key.table, key.number, changed);
        }
        let root = &mut self.roots[key.table.index()];
        if key.level == root.height {
            root.pointer = pointer;
            return Ok(());
        }
        let (parent, slot) = key.parent();
        self.bring_in(parent)?;
        let (page, first) = self.cache.change_directory(parent);
        pointer.put(page, slot);
        if first {
            changed.push(parent);
        }
        Ok(())
    }

    /// Adds levels to a directory until it reaches page `number`; each new topmost page points to the one
    /// before.
    fn raise_directory(&mut self, table: Table, number: u64, changed: &mut Vec<PageKey>) {
        while !reaches(self.roots[table.index()].height, number) {
            let TableRoot { height, pointer } = self.roots[table.index()];
            let key = PageKey { level: height + 1, table, number: 0 };
            // A reader may have met the page as one that does not exist.
            self.cache.insert(key, &[0; PAGE_BYTES], PageFacts::default());
            let (page, first) = self.cache.change_directory(key);
            pointer.put(page, 0);
            if first {
                changed.push(key);
            }
            self.roots[table.index()] = TableRoot { height: height + 1, pointer: PagePointer::default() };
        }
    }
}
