// The pages that can be opened by their address. Each is checked in every size and colour, and without JavaScript.

/** The pages of the settings. */
export const SETTINGS = [
  "/settings",
  "/settings/schedules",
  "/settings/monitors",
  "/settings/plan",
  "/settings/tokens",
  "/settings/about",
];

/** All pages. */
export const PATHS = ["/", ...SETTINGS, "/start?step=pair", "/start?step=plan", "/start?step=schedule", "/login", "/no-such-page"];
