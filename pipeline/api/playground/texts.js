// What the options are called on the page, and what they do in plain language. Fields that the contract gains appear
// with its own name and description.
export const TITLES = {
  engine: "Engine",
  output_format: "Format",
  resolution: "Detail",
  texture_size: "Texture size",
  render: "Turntable video",
  multi_image: "Multi image",
  target_faces: "Number of faces",
  mesh_simplify: "Simplification",
  no_texture: "No texture",
  view_angles: "View angles",
  multi_image_mode: "Combining views",
  ss_guidance_strength: "Shape: faithfulness",
  ss_sampling_steps: "Shape: steps",
  slat_guidance_strength: "Surface: faithfulness",
  slat_sampling_steps: "Surface: steps",
  chunk_size: "Memory",
  temp: "Temporary storage",
  track_id: "Your own id",
  splat: "Splat file",
  retention_s: "Keep files for",
};

export const HINTS = {
  output_format: "GLB suits the web and most programs, USDZ Apple's devices, OBJ and PLY editors, 3MF (with colours) and STL 3D printers. You can choose another one afterwards.",
  resolution: "How fine the shape is. Higher takes longer and more memory.",
  texture_size: "Pixels along one side of the image on the surface.",
  render: "Also make a film of one turn around the model.",
  multi_image: "One image that shows several views side by side on a transparent background. Several images set this by themselves.",
  target_faces: "How many triangles the model has. Fewer load faster. Empty: as the simplification gives.",
  mesh_simplify: "Share of the triangles that is removed: 0.9 keeps every tenth. The number of faces, if set, replaces it.",
  no_texture: "Shape only, in one colour.",
  depth: "How deep the model is: 0 is a thin plate, 1 is as deep as wide. Empty: guessed from the outline.",
  view_angles: "For a sheet of views: where each was taken from, such as `front, right, back`. Empty: guessed.",
  multi_image_mode: "How several views become one model. Empty: the engine's usual way.",
  ss_guidance_strength: "How strictly the rough shape follows the image. Very high values may distort it.",
  ss_sampling_steps: "More steps refine the rough shape and take longer.",
  slat_guidance_strength: "How strictly surface and colours follow the image.",
  slat_sampling_steps: "More steps refine surface and colours and take longer.",
  chunk_size: "Points computed at once. Lower it if the service runs out of memory; the result is the same.",
  seed: "The same image, options and seed give the same model. 0 draws a new one.",
  temp: "Keep the files at this service although you have a bucket of your own.",
  webhook: "A URL that receives the result when the job ends.",
  track_id: "Comes back with the result. Empty: the name of the image.",
  splat: "Also deliver the model as Gaussian splats, if the engine has them.",
  retention_s: "Seconds for which the files can be downloaded. Empty: as the service is set.",
};

/** What an empty field means, in the field itself. */
export const EMPTY = { depth: "guessed", target_faces: "not set", view_angles: "guessed", track_id: "name of the image", retention_s: "not set", webhook: "none" };
