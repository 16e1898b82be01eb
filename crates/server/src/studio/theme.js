// Applies the stored theme before the first paint, so that the page does not flash. The switch is in main.js, the colours in colors.css.
(() => {
  let theme = "system";
  try {
    theme = localStorage.getItem("lory.theme") || "system";
  } catch {
    // Storage may be disabled; the system's theme applies.
  }
  document.documentElement.dataset.theme = theme;
})();
