// Runs before the first paint, so that a chosen theme does not flash. The switch itself is in main.js.
(() => {
  let theme = "system";
  try {
    theme = localStorage.getItem("lory.theme") || "system";
  } catch {
    // Storage may be off; the system's colours do.
  }
  document.documentElement.dataset.theme = theme;
})();
